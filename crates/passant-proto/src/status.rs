//! Which gRPC status does a refusal become, and which refusal a status?

use std::error::Error;

use passant_core::limits::STATUS_MESSAGE_BYTES;
use passant_core::{AgentFault, Reason, Refusal};
use prost::Message;
use tonic::{Code, Status};

use crate::rpc;
use crate::types;
use crate::types::permission_denied_details::Reason as Detail;

/// By this agents know the one detail that they act on.
const DETAILS_URL: &str = "type.googleapis.com/spire.api.types.PermissionDeniedDetails";

/// What a successful item of a batch says, as SPIRE does.
const OK: &str = "OK";

/// The status that tells a caller of `refusal`: its reason, its public text, and the agent's fault if
/// it is a denial. The cause stays here; log it first.
///
/// A public text beyond [`STATUS_MESSAGE_BYTES`] is cut.
pub fn to_status(refusal: &Refusal) -> Status {
    let code = code_of(refusal.reason);
    let message = bounded(&refusal.public);
    match refusal.agent_fault {
        Some(fault) if refusal.reason == Reason::Denied => {
            Status::with_details(code, message, details(code, message, fault).into())
        }
        Some(_) | None => Status::new(code, message),
    }
}

/// The refusal that `status` tells of. It keeps the status as its cause if that has a cause itself,
/// as failures to connect have.
///
/// An agent's fault is believed only of a denial whose details agree with it: an agent may give up its
/// identity on reading one.
pub fn from_status(status: &Status) -> Refusal {
    let mut refusal = Refusal::new(reason_of(status.code()), status.message());
    refusal.agent_fault = fault_in(status);
    if status.source().is_some() {
        refusal = refusal.because(status.clone());
    }
    refusal
}

/// The status of a batch's item that succeeded.
pub fn ok() -> types::Status {
    types::Status { code: 0, message: OK.to_owned() }
}

/// The status of a batch's item that was refused. The cause stays here; log it first.
pub fn to_item(refusal: &Refusal) -> types::Status {
    types::Status { code: code_of(refusal.reason).into(), message: bounded(&refusal.public).to_owned() }
}

/// Whether a batch's item succeeded; a missing status counts as a refusal for [`Reason::Internal`].
///
/// # Errors
/// The refusal that the status tells of.
pub fn from_item(status: Option<&types::Status>) -> Result<(), Refusal> {
    let Some(status) = status else {
        return Err(Refusal::new(Reason::Internal, "the answer lacks the status of an item"));
    };
    let code = Code::from_i32(status.code);
    if code == Code::Ok { Ok(()) } else { Err(Refusal::new(reason_of(code), status.message.as_str())) }
}

fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::Invalid => Code::InvalidArgument,
        Reason::Unauthenticated => Code::Unauthenticated,
        Reason::Denied => Code::PermissionDenied,
        Reason::NotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Precondition => Code::FailedPrecondition,
        Reason::Exhausted => Code::ResourceExhausted,
        Reason::Unavailable => Code::Unavailable,
        Reason::Unimplemented => Code::Unimplemented,
        Reason::Internal => Code::Internal,
    }
}

/// The inverse of [`code_of`]; codes that we never send count as their nearest neighbour.
fn reason_of(code: Code) -> Reason {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Reason::Invalid,
        Code::Unauthenticated => Reason::Unauthenticated,
        Code::PermissionDenied => Reason::Denied,
        Code::NotFound => Reason::NotFound,
        Code::AlreadyExists => Reason::AlreadyExists,
        Code::FailedPrecondition => Reason::Precondition,
        Code::ResourceExhausted => Reason::Exhausted,
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => Reason::Unavailable,
        Code::Unimplemented => Reason::Unimplemented,
        // Success is no refusal: whoever calls it one is at fault.
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Ok => Reason::Internal,
    }
}

fn detail_of(fault: AgentFault) -> Detail {
    match fault {
        AgentFault::Expired => Detail::AgentExpired,
        AgentFault::NotAttested => Detail::AgentNotAttested,
        AgentFault::NotActive => Detail::AgentNotActive,
        AgentFault::MustReattest => Detail::AgentMustReattest,
        AgentFault::Banned => Detail::AgentBanned,
    }
}

fn fault_of(detail: Detail) -> Option<AgentFault> {
    match detail {
        Detail::Unknown => None,
        Detail::AgentExpired => Some(AgentFault::Expired),
        Detail::AgentNotAttested => Some(AgentFault::NotAttested),
        Detail::AgentNotActive => Some(AgentFault::NotActive),
        Detail::AgentMustReattest => Some(AgentFault::MustReattest),
        Detail::AgentBanned => Some(AgentFault::Banned),
    }
}

/// The encoded `google.rpc.Status` for the trailer `grpc-status-details-bin`.
fn details(code: Code, message: &str, fault: AgentFault) -> Vec<u8> {
    let detail = types::PermissionDeniedDetails { reason: detail_of(fault).into() };
    let detail = prost_types::Any { type_url: DETAILS_URL.to_owned(), value: detail.encode_to_vec() };
    rpc::Status { code: code.into(), message: message.to_owned(), details: vec![detail] }.encode_to_vec()
}

fn fault_in(status: &Status) -> Option<AgentFault> {
    if status.code() != Code::PermissionDenied {
        return None;
    }
    let full = rpc::Status::decode(status.details()).ok()?;
    if full.code != i32::from(Code::PermissionDenied) {
        return None;
    }
    let detail = full.details.iter().find(|detail| detail.type_url == DETAILS_URL)?;
    fault_of(types::PermissionDeniedDetails::decode(detail.value.as_slice()).ok()?.reason())
}

/// The beginning of `text`, at most [`STATUS_MESSAGE_BYTES`] and whole characters.
fn bounded(text: &str) -> &str {
    let mut end = text.len().min(STATUS_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASONS: [Reason; 10] = [
        Reason::Invalid,
        Reason::Unauthenticated,
        Reason::Denied,
        Reason::NotFound,
        Reason::AlreadyExists,
        Reason::Precondition,
        Reason::Exhausted,
        Reason::Unavailable,
        Reason::Unimplemented,
        Reason::Internal,
    ];

    const FAULTS: [AgentFault; 5] = [
        AgentFault::Expired,
        AgentFault::NotAttested,
        AgentFault::NotActive,
        AgentFault::MustReattest,
        AgentFault::Banned,
    ];

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in REASONS {
            let refusal = Refusal::new(reason, "no \u{e9}");
            let back = from_status(&to_status(&refusal));
            assert_eq!((back.reason, back.public.as_str(), back.agent_fault), (reason, "no \u{e9}", None));
            let back = from_item(Some(&to_item(&refusal))).unwrap_err();
            assert_eq!((back.reason, back.public.as_str()), (reason, "no \u{e9}"));
        }
    }

    #[test]
    fn every_agent_fault_survives_the_wire() {
        for fault in FAULTS {
            let refusal = Refusal::denied("no").with_agent_fault(fault);
            assert_eq!(from_status(&to_status(&refusal)).agent_fault, Some(fault));
        }
    }

    #[test]
    fn details_have_the_bytes_that_spire_sends() {
        let refusal = Refusal::denied("no").with_agent_fault(AgentFault::Banned);
        let mut expected = vec![0x08, 7, 0x12, 2, b'n', b'o', 0x1a, 65, 0x0a, 59];
        expected.extend_from_slice(DETAILS_URL.as_bytes());
        expected.extend_from_slice(&[0x12, 2, 0x08, 4]);
        assert_eq!(to_status(&refusal).details(), expected);
    }

    #[test]
    fn a_fault_is_neither_sent_nor_believed_without_a_denial() {
        let refusal = Refusal::unavailable("later").with_agent_fault(AgentFault::Banned);
        assert!(to_status(&refusal).details().is_empty());

        let bytes = details(Code::PermissionDenied, "no", AgentFault::Banned);
        let status = Status::with_details(Code::Unavailable, "later", bytes.clone().into());
        assert_eq!(from_status(&status).agent_fault, None);
        let status = Status::with_details(Code::PermissionDenied, "no", bytes.into());
        assert_eq!(from_status(&status).agent_fault, Some(AgentFault::Banned));
        let bytes = details(Code::Unavailable, "no", AgentFault::Banned);
        let status = Status::with_details(Code::PermissionDenied, "no", bytes.into());
        assert_eq!(from_status(&status).agent_fault, None);
    }

    #[test]
    fn broken_or_foreign_details_are_no_fault() {
        let status = Status::with_details(Code::PermissionDenied, "no", vec![0xff; 9].into());
        assert_eq!(from_status(&status).agent_fault, None);

        let unknown = prost_types::Any { type_url: DETAILS_URL.to_owned(), value: vec![0x08, 99] };
        let foreign =
            prost_types::Any { type_url: "type.googleapis.com/a.B".to_owned(), value: vec![0x08, 4] };
        for detail in [unknown, foreign] {
            let full = rpc::Status { code: 7, message: String::new(), details: vec![detail] };
            let status = Status::with_details(Code::PermissionDenied, "no", full.encode_to_vec().into());
            assert_eq!(from_status(&status).agent_fault, None);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = format!("a{}", "\u{e9}".repeat(STATUS_MESSAGE_BYTES));
        let status = to_status(&Refusal::invalid(long));
        assert_eq!(status.message().len(), STATUS_MESSAGE_BYTES - 1);
        let exact = "a".repeat(STATUS_MESSAGE_BYTES);
        assert_eq!(to_status(&Refusal::invalid(exact.as_str())).message(), exact);
    }

    #[test]
    fn the_cause_is_never_sent() {
        let status = to_status(&Refusal::internal("disk on fire"));
        assert!(!format!("{status:?}").contains("disk"), "{status:?}");
    }

    #[test]
    fn a_missing_item_status_is_no_success() {
        assert!(from_item(Some(&ok())).is_ok());
        assert_eq!(from_item(None).unwrap_err().reason, Reason::Internal);
    }
}
