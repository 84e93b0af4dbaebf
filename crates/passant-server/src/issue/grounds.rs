//! On what grounds does an agent have an SVID minted?

use std::sync::Arc;

use passant_core::{Entry, Evidence, Refusal, UnixTime};

use super::order;
use crate::caller::AgentCaller;
use crate::limits::{EVIDENCE_AGE, EVIDENCE_AHEAD};
use crate::record::Grounds;
use crate::state::State;
use crate::sync::held::is_strict;

/// What an agent says of why it asks.
#[derive(Clone, Debug)]
pub enum Plea {
    /// Nothing: SPIRE's protocol has no place for it.
    Untold,
    /// Nobody has asked it yet: it wants to have the SVID when somebody does.
    Prefetch,
    /// A process has asked, of which it found out this.
    Process(Arc<Evidence>),
}

impl Plea {
    /// Checks what the agent says against the entry, and by the server's own clock; what the record will say of it.
    ///
    /// # Errors
    /// NotFound for an entry that is kept from agents of SPIRE; Denied when the process has not all selectors of the entry, or
    /// is stopped; Invalid when it was attested too long ago, or in time to come.
    pub(super) fn check(
        &self,
        state: &State,
        caller: &AgentCaller,
        entry: &Entry,
        now: UnixTime,
    ) -> Result<Grounds, Refusal> {
        match self {
            Self::Untold if is_strict(entry) => {
                Err(order::no_entry().because(Refusal::denied("the entry is kept from agents of SPIRE")))
            }
            Self::Untold => Ok(Grounds::Untold),
            Self::Prefetch => Ok(Grounds::Prefetched),
            Self::Process(evidence) => {
                if !evidence.selectors.contains_all(&entry.selectors) {
                    let why = "evidence does not bear out the entry: the process lacks selectors of it";
                    return Err(Refusal::denied(why));
                }
                if evidence.attested_at > now.plus(EVIDENCE_AHEAD) {
                    return Err(Refusal::invalid(
                        "evidence is of a time to come: set the clocks of agent and server",
                    ));
                }
                if evidence.attested_at.plus(EVIDENCE_AGE) < now {
                    return Err(Refusal::invalid("evidence is too old: attest the process again"));
                }
                self.stands(state, caller)?;
                Ok(Grounds::Attested {
                    instance: evidence.instance.clone(),
                    attestors: evidence.attestors.clone(),
                    at: evidence.attested_at,
                })
            }
        }
    }

    /// Whether the process may have anything at all.
    ///
    /// # Errors
    /// Denied when it is stopped.
    pub(super) fn stands(&self, state: &State, caller: &AgentCaller) -> Result<(), Refusal> {
        match self {
            Self::Process(evidence) if state.instance_stop(caller.id(), &evidence.instance).is_some() => {
                Err(Refusal::denied("the process is stopped"))
            }
            Self::Untold | Self::Prefetch | Self::Process(_) => Ok(()),
        }
    }
}
