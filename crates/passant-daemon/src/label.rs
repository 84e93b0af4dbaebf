//! By what are metrics told apart? Labels are closed: every combination is known when the program is built.
//!
//! No SPIFFE ID, no address and no process ID is ever a label: whoever can choose a value could fill the memory of the
//! daemon and of whoever scrapes it.

use std::fmt;

use passant_core::refusal::Retry;
use passant_core::{Reason, Refusal};

/// A label with all the values it can have. Made by [`labels!`](crate::labels).
pub trait Label: Copy + fmt::Debug + Send + Sync + 'static {
    /// The label's name.
    const KEY: &'static str;
    /// Every value, in the order of their indexes.
    const ALL: &'static [Self];

    /// Where the value stands in [`Label::ALL`].
    fn index(self) -> usize;

    /// As Prometheus sees it.
    fn value(self) -> &'static str;
}

/// One label, two, or none.
pub trait Labels: Copy + fmt::Debug + Send + Sync + 'static {
    /// Every combination, in the order of their indexes.
    fn all() -> Vec<Self>;

    /// Where the combination stands in [`Labels::all`].
    fn index(self) -> usize;

    /// Names and values.
    fn pairs(self) -> Vec<(&'static str, &'static str)>;
}

impl<A: Label> Labels for A {
    fn all() -> Vec<Self> {
        A::ALL.to_vec()
    }

    fn index(self) -> usize {
        Label::index(self)
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        vec![(A::KEY, self.value())]
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    fn all() -> Vec<Self> {
        A::ALL.iter().flat_map(|a| B::ALL.iter().map(|b| (*a, *b))).collect()
    }

    fn index(self) -> usize {
        Label::index(self.0) * B::ALL.len() + Label::index(self.1)
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        vec![(A::KEY, self.0.value()), (B::KEY, self.1.value())]
    }
}

impl Labels for () {
    fn all() -> Vec<Self> {
        vec![()]
    }

    fn index(self) -> usize {
        0
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

/// Defines a [`Label`]: an enum, the label's name, and each variant with its value.
///
/// ```
/// passant_daemon::labels! {
///     /// How it went.
///     pub enum Went: "went" {
///         /// Well.
///         Well = "well",
///         /// Badly.
///         Badly = "badly",
///     }
/// }
/// ```
#[macro_export]
macro_rules! labels {
    ($(#[$about:meta])* $vis:vis enum $name:ident: $key:literal {
        $($(#[$of:meta])* $variant:ident = $value:literal),+ $(,)?
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$of])* $variant),+ }

        impl $crate::label::Label for $name {
            const KEY: &'static str = $key;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn index(self) -> usize {
                self as usize
            }

            fn value(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }
        }
    };
}

labels! {
    /// How it went.
    pub enum Outcome: "outcome" {
        /// As asked for.
        Done = "done",
        /// The caller's request or standing does not allow it.
        Refused = "refused",
        /// The server could not do it now.
        Failed = "failed",
    }
}

impl Outcome {
    /// How a result counts: what may do later without any change of the request has failed, all else was refused.
    pub fn of<T>(result: Result<T, &Refusal>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(refusal) if refusal.retry() == Retry::No => Self::Refused,
            Err(_) => Self::Failed,
        }
    }
}

impl Label for Reason {
    const KEY: &'static str = "reason";
    const ALL: &'static [Self] = &[
        Self::Invalid,
        Self::Unauthenticated,
        Self::Denied,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Precondition,
        Self::Exhausted,
        Self::Unavailable,
        Self::Unimplemented,
        Self::Internal,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn value(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Precondition => "precondition",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use passant_core::{Reason, Refusal};

    use super::{Labels, Outcome};

    labels! {
        /// An answer.
        enum Answer: "answer" {
            /// Yes.
            Yes = "yes",
            /// No.
            No = "no",
        }
    }

    #[test]
    fn every_combination_stands_at_its_index() {
        fn check<L: Labels>(count: usize) {
            let all = L::all();
            assert_eq!(all.len(), count);
            for (at, labels) in all.iter().enumerate() {
                assert_eq!(labels.index(), at, "{labels:?}");
            }
            assert_eq!(all.iter().map(|labels| labels.pairs()).collect::<BTreeSet<_>>().len(), count);
        }
        check::<()>(1);
        check::<Answer>(2);
        check::<Reason>(10);
        check::<(Answer, Reason)>(20);
    }

    #[test]
    fn what_may_do_later_has_failed_and_all_else_was_refused() {
        assert_eq!(Outcome::of(Ok(())), Outcome::Done);
        assert_eq!(Outcome::of::<()>(Err(&Refusal::invalid("x"))), Outcome::Refused);
        assert_eq!(Outcome::of::<()>(Err(&Refusal::unavailable("x"))), Outcome::Failed);
        assert_eq!(Outcome::of::<()>(Err(&Refusal::internal("x"))), Outcome::Failed);
    }
}
