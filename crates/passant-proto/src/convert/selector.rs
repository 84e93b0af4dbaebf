//! How do selectors convert?

use passant_core::{Selector, Selectors};

use super::Malformed;
use crate::types;

/// Takes a list of selectors; repeated ones count once.
///
/// # Errors
/// When one of them is no selector.
pub fn from_wire(selectors: &[types::Selector]) -> Result<Selectors, Malformed> {
    let one = |selector: &types::Selector| Selector::new(&selector.r#type, &selector.value);
    selectors.iter().map(one).collect::<Result<_, _>>().map_err(|cause| Malformed::new(cause.to_string()))
}

/// Lists selectors in their order.
pub fn to_wire(selectors: &Selectors) -> Vec<types::Selector> {
    let one = |selector: &Selector| types::Selector {
        r#type: selector.kind().to_owned(),
        value: selector.value().to_owned(),
    };
    selectors.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(kind: &str, value: &str, expected: Option<&str>) {
        let wire = [types::Selector { r#type: kind.to_owned(), value: value.to_owned() }];
        let text = from_wire(&wire).ok().map(|selectors| selectors.iter().next().unwrap().to_string());
        assert_eq!(text.as_deref(), expected);
    }

    #[test]
    fn a_selector_has_a_type_without_colon_and_a_value() {
        check("unix", "uid:0", Some("unix:uid:0"));
        check("", "uid:0", None);
        check("unix", "", None);
        check("unix:uid", "0", None);
    }

    proptest! {
        #[test]
        fn selectors_survive_the_wire(parts in proptest::collection::vec(("[a-z_]{1,8}", ".{1,16}"), 0..8)) {
            let selectors: Selectors =
                parts.iter().map(|(kind, value)| Selector::new(kind, value).unwrap()).collect();
            prop_assert_eq!(from_wire(&to_wire(&selectors)).unwrap(), selectors);
        }
    }
}
