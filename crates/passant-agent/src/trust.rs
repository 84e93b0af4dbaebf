//! Does the bundle held vouch for an SVID that the server issued to us?

use passant_core::UnixTime;
use passant_core::bundle::Bundle;
use passant_core::x509_svid::{self, X509Svid, X509SvidError};

/// The authorities of a bundle that are not tainted.
pub(crate) struct Vouching(Bundle);

impl Vouching {
    /// Leaves the tainted authorities of `bundle` out.
    pub(crate) fn of(bundle: &Bundle) -> Self {
        let mut bundle = bundle.clone();
        bundle.x509_authorities.retain(|authority| !authority.tainted);
        Self(bundle)
    }

    /// Whether one of them vouches for `svid`. If not, it is to be minted again: its authority is tainted or gone.
    pub(crate) fn covers(&self, svid: &X509Svid) -> bool {
        verify_issued(svid, &self.0).is_ok()
    }
}

/// Checks that an authority of `bundle`, tainted or not, vouches for an SVID that was issued to us; true if one that is not
/// tainted does.
///
/// The time of the check is the beginning of the SVID's own life, not this host's clock: a clock that is behind must
/// not throw away what the server has just signed. Expiry is looked at where the SVID is used.
///
/// # Errors
/// When no path leads from the SVID to an authority.
pub(crate) fn verify_issued(svid: &X509Svid, bundle: &Bundle) -> Result<bool, X509SvidError> {
    let begin: UnixTime = svid.not_before();
    x509_svid::verify(svid.chain().to_vec(), bundle, begin)?;
    let is_tainted = bundle.x509_authorities.iter().any(|authority| authority.tainted);
    Ok(!is_tainted || Vouching::of(bundle).covers(svid))
}
