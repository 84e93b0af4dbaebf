//! Did a server's goodbye overtake a request, so that the server never looked at it?

use std::error::Error;

use tonic::Status;

/// Whether a call has no answer because the server was ending the connection in good order (GOAWAY without an error) while the request was
/// under way. The server has then told that it leaves the request alone (RFC 9113 section 6.8), or it was never sent: any call
/// may be made again.
pub fn overtook(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        cause = error.source();
    }
    false
}
