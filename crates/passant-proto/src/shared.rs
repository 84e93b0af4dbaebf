//! What has a part of a message that goes out to thousands, so that it is not made for each of them?

use std::ops::Deref;
use std::sync::Arc;

use prost::DecodeError;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};

/// A message that many have a part in. On the wire it is `T`; its clones are handles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shared<T>(Arc<T>);

impl<T> From<T> for Shared<T> {
    fn from(message: T) -> Self {
        Self(Arc::new(message))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Message + Clone + Default> Message for Shared<T> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.0.encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        Arc::make_mut(&mut self.0).merge_field(tag, wire_type, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bundle, X509Certificate};

    #[test]
    fn a_shared_message_is_the_same_on_the_wire_and_its_clones_are_one() {
        let authority = X509Certificate { asn1: vec![7; 300], tainted: true };
        let alone = Bundle {
            trust_domain: "example.org".to_owned(),
            x509_authorities: vec![authority.clone(), authority],
            sequence_number: 9,
            ..Bundle::default()
        };
        let shared = Shared::from(alone.clone());
        let bytes = alone.encode_to_vec();
        assert_eq!((shared.encode_to_vec(), shared.encoded_len()), (bytes.clone(), bytes.len()));
        let read = Shared::<Bundle>::decode(bytes.as_slice()).unwrap();
        assert_eq!((*read).clone(), alone);
        let mut other = shared.clone();
        assert!(std::ptr::eq(&*other, &*shared));
        other.clear();
        assert_eq!((*shared).clone(), alone, "what one forgets, the others keep");
    }
}
