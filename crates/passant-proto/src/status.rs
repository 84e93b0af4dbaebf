//! Which gRPC status does a refusal become, and which refusal a status?

use std::error::Error;
use std::time::Duration;

use passant_core::limits::{RETRY_HINT, STATUS_MESSAGE_BYTES};
use passant_core::refusal::Retry;
use passant_core::{AgentFault, Reason, Refusal};
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::rpc;
use crate::types;
use crate::types::permission_denied_details::Reason as Detail;

/// By this agents know the one detail that they act on.
const DETAILS_URL: &str = "type.googleapis.com/spire.api.types.PermissionDeniedDetails";

/// By this programs know when to ask again.
const RETRY_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// What gRPC clients that retry by themselves wait for, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// What a successful item of a batch says, as SPIRE does.
const OK: &str = "OK";

/// The status that tells a caller of `refusal`: its reason, its public text, the agent's fault if it is a denial, and when
/// to ask again if that is known: as google.rpc.RetryInfo among the details, and as the milliseconds of `grpc-retry-pushback-ms`.
/// The cause stays here; log it first.
///
/// A public text beyond [`STATUS_MESSAGE_BYTES`] is cut, a time beyond [`RETRY_HINT`] is said to be that.
pub fn to_status(refusal: &Refusal) -> Status {
    let code = code_of(refusal.reason);
    let message = bounded(&refusal.public);
    if let Some(fault) = refusal.agent_fault
        && refusal.reason == Reason::Denied
    {
        return Status::with_details(code, message, details(code, message, fault_detail(fault)).into());
    }
    let Some(wait) = refusal.retry_after.filter(|_| refusal.retry() == Retry::WithBackoff) else {
        return Status::new(code, message);
    };
    let wait = wait.min(RETRY_HINT);
    let mut status = Status::with_details(code, message, details(code, message, retry_detail(wait)).into());
    // Rounded up: who comes a moment too early is refused once more.
    if let Ok(pushback) = MetadataValue::try_from((wait.as_micros().div_ceil(1000)).to_string()) {
        status.metadata_mut().insert(PUSHBACK, pushback);
    }
    status
}

/// The refusal that `status` tells of. It keeps the status as its cause if that has a cause itself,
/// as failures to connect have.
///
/// An agent's fault is believed only of a denial whose details agree with it: an agent may give up its
/// identity on reading one. When to ask again is read wherever asking again may do, and is [`RETRY_HINT`] at most.
pub fn from_status(status: &Status) -> Refusal {
    let mut refusal = Refusal::new(reason_of(status.code()), status.message());
    refusal.agent_fault = fault_in(status);
    refusal.retry_after = retry_in(status).filter(|_| refusal.retry() == Retry::WithBackoff);
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
fn details(code: Code, message: &str, detail: prost_types::Any) -> Vec<u8> {
    rpc::Status { code: code.into(), message: message.to_owned(), details: vec![detail] }.encode_to_vec()
}

fn fault_detail(fault: AgentFault) -> prost_types::Any {
    let detail = types::PermissionDeniedDetails { reason: detail_of(fault).into() };
    prost_types::Any { type_url: DETAILS_URL.to_owned(), value: detail.encode_to_vec() }
}

fn retry_detail(wait: Duration) -> prost_types::Any {
    let info = rpc::RetryInfo { retry_delay: prost_types::Duration::try_from(wait).ok() };
    prost_types::Any { type_url: RETRY_URL.to_owned(), value: info.encode_to_vec() }
}

/// When to ask again, by the details or else by the milliseconds. A negative or malformed time is none.
fn retry_in(status: &Status) -> Option<Duration> {
    let detailed = || {
        let full = rpc::Status::decode(status.details()).ok()?;
        let detail = full.details.iter().find(|detail| detail.type_url == RETRY_URL)?;
        let delay = rpc::RetryInfo::decode(detail.value.as_slice()).ok()?.retry_delay?;
        Duration::try_from(delay).ok()
    };
    let pushed_back =
        || status.metadata().get(PUSHBACK)?.to_str().ok()?.parse().ok().map(Duration::from_millis);
    detailed().or_else(pushed_back).map(|wait| wait.min(RETRY_HINT))
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

        let bytes = details(Code::PermissionDenied, "no", fault_detail(AgentFault::Banned));
        let status = Status::with_details(Code::Unavailable, "later", bytes.clone().into());
        assert_eq!(from_status(&status).agent_fault, None);
        let status = Status::with_details(Code::PermissionDenied, "no", bytes.into());
        assert_eq!(from_status(&status).agent_fault, Some(AgentFault::Banned));
        let bytes = details(Code::Unavailable, "no", fault_detail(AgentFault::Banned));
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
    fn when_to_ask_again_survives_the_wire_within_its_bound() {
        for (said, read) in [(1, 1), (1_500, 1_500), (7_200_000, 3_600_000)] {
            let refusal = Refusal::exhausted("later").retry_in(Duration::from_millis(said));
            let status = to_status(&refusal);
            assert_eq!(status.metadata().get(PUSHBACK).unwrap().to_str().unwrap(), read.to_string());
            assert_eq!(from_status(&status).retry_after, Some(Duration::from_millis(read)));
        }
        // Of other servers, which say only one of the two, or nonsense.
        let mut status = Status::resource_exhausted("later");
        assert_eq!(from_status(&status).retry_after, None);
        for (text, read) in [("250", Some(Duration::from_millis(250))), ("-1", None), ("soon", None)] {
            status.metadata_mut().insert(PUSHBACK, MetadataValue::try_from(text).unwrap());
            assert_eq!(from_status(&status).retry_after, read, "{text}");
        }
        let past = prost_types::Duration { seconds: -5, nanos: 0 };
        let info = rpc::RetryInfo { retry_delay: Some(past) }.encode_to_vec();
        let detail = prost_types::Any { type_url: RETRY_URL.to_owned(), value: info };
        let full = details(Code::ResourceExhausted, "no", detail);
        let status = Status::with_details(Code::ResourceExhausted, "no", full.into());
        assert_eq!(from_status(&status).retry_after, None);
    }

    #[test]
    fn retry_info_has_the_bytes_that_grpc_clients_read() {
        let status = to_status(&Refusal::exhausted("no").retry_in(Duration::from_millis(2_500)));
        let mut expected = vec![0x08, 8, 0x12, 2, b'n', b'o', 0x1a, 54, 0x0a, 40];
        expected.extend_from_slice(RETRY_URL.as_bytes());
        // The duration in field 1: 2 seconds and 500000000 nanoseconds.
        expected.extend_from_slice(&[0x12, 10, 0x0a, 8, 0x08, 2, 0x10, 0x80, 0xca, 0xb5, 0xee, 0x01]);
        assert_eq!(status.details(), expected);
    }

    #[test]
    fn what_never_does_is_not_to_be_asked_again() {
        let status = to_status(&Refusal::invalid("no").retry_in(Duration::from_secs(1)));
        assert!(status.details().is_empty() && status.metadata().get(PUSHBACK).is_none());
        let status = to_status(&Refusal::exhausted("no").retry_in(Duration::from_secs(1)));
        let elsewhere = Status::with_details(Code::InvalidArgument, "no", status.details().to_vec().into());
        assert_eq!(from_status(&elsewhere).retry_after, None);
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
