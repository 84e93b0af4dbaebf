//! How does what was measured come into a README?

use anyhow::{Context, Result};

/// `readme` with `text` in the place of the table.
///
/// # Errors
/// When it has not both markers.
pub(crate) fn with_table(readme: &str, text: &str) -> Result<String> {
    with_part(readme, "table", text)
}

/// `readme` with `text` in the place of the part called `name`: between two lines that say where it begins and ends.
///
/// # Errors
/// When it has not both.
pub(crate) fn with_part(readme: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->"), format!("<!-- {name}: end -->"));
    let (before, rest) = readme
        .split_once(&begin)
        .with_context(|| format!("README.md has no marker where the {name} begins"))?;
    let (_, after) =
        rest.split_once(&end).with_context(|| format!("README.md has no marker where the {name} ends"))?;
    Ok(format!("{before}{begin}\n{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_replaced_between_its_markers() {
        let readme = |text: &str| format!("a\n<!-- table: begin -->\n{text}\n<!-- table: end -->\nb\n");
        assert_eq!(with_table(&readme("old"), "new\n").unwrap(), readme("new"));
        assert!(with_part(&readme("old"), "load", "new\n").is_err());
    }
}
