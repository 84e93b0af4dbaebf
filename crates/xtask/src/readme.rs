//! How does what was measured come into a README?

use anyhow::{Context, Result};

/// Between these two lines of it stands the table.
const BEGIN: &str = "<!-- table: begin -->";
const END: &str = "<!-- table: end -->";

/// `readme` with `text` in the place of the table.
///
/// # Errors
/// When it has not both markers.
pub(crate) fn with_table(readme: &str, text: &str) -> Result<String> {
    let (before, rest) =
        readme.split_once(BEGIN).context("README.md has no marker where the table begins")?;
    let (_, after) = rest.split_once(END).context("README.md has no marker where the table ends")?;
    Ok(format!("{before}{BEGIN}\n{text}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_replaced_between_its_markers() {
        let readme = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(with_table(&readme, "new\n").unwrap(), format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert!(with_table("a", "new").is_err());
    }
}
