//! Is an agent's fault believed only of a denial, and is a status the same refusal again once sent on?
//!
//! The first byte is the code, the second the length of the message; the rest are the details.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::Reason;
use passant_core::limits::STATUS_MESSAGE_BYTES;
use passant_proto::status::{from_item, from_status, to_item, to_status};
use passant_proto::types;
use tonic::{Code, Status};

fuzz_target!(|bytes: &[u8]| {
    let Some(([code, length], rest)) = bytes.split_first_chunk::<2>() else { return };
    let (message, details) = rest.split_at(usize::from(*length).min(rest.len()));
    let Ok(message) = std::str::from_utf8(message) else { return };
    // Long ones are cut.
    let message = message.repeat(1 + usize::from(*code >> 5) * 8);
    let code = Code::from_i32(i32::from(*code & 31));
    let status = Status::with_details(code, message.as_str(), details.to_vec().into());

    let refusal = from_status(&status);
    assert_eq!(refusal.public, message);
    assert!(
        refusal.agent_fault.is_none() || (code == Code::PermissionDenied && refusal.reason == Reason::Denied)
    );
    let sent_on = to_status(&refusal);
    assert!(sent_on.message().len() <= STATUS_MESSAGE_BYTES && message.starts_with(sent_on.message()));
    let again = from_status(&sent_on);
    assert_eq!((again.reason, again.agent_fault), (refusal.reason, refusal.agent_fault));

    let item = to_item(&refusal);
    assert_eq!(from_item(Some(&item)).map_err(|refusal| refusal.reason), Err(refusal.reason));
    let own = from_item(Some(&types::Status { code: code.into(), message: message.clone() }));
    assert_eq!(own.is_ok(), code == Code::Ok);
});
