//! Is every selector that is taken within its bounds, and the same again once written?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::limits::{SELECTOR_KIND_BYTES, SELECTOR_VALUE_BYTES};
use passant_core::{Selector, Selectors};

fuzz_target!(|text: &str| {
    if let Ok(selector) = Selector::parse(text) {
        assert_eq!(selector.to_string(), text);
        assert!((1..=SELECTOR_KIND_BYTES).contains(&selector.kind().len()));
        assert!((1..=SELECTOR_VALUE_BYTES).contains(&selector.value().len()));
        assert!(!selector.kind().contains(':'));
        assert_eq!(Selector::new(selector.kind(), selector.value()), Ok(selector));
    }
    let Ok(selectors) = text.lines().map(Selector::parse).collect::<Result<Selectors, _>>() else { return };
    let written = serde_json::to_vec(&selectors).expect("texts have a JSON form");
    assert_eq!(serde_json::from_slice::<Selectors>(&written).ok().as_ref(), Some(&selectors));
    assert!(selectors.contains_all(&selectors) && selectors.contains_all(&Selectors::new()));
    assert_eq!(selectors.contains_any(&selectors), !selectors.is_empty());
});
