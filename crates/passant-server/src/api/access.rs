//! How is passant.access.v1.Access answered?

use std::collections::BTreeSet;

use passant_attest::node::join_token::Token;
use passant_core::{Entry, EntryDraft, EntryId, Refusal, SpiffeId, TrustDomain};
use passant_proto::access::access_server::Access;
use passant_proto::access::check_request::Caller;
use passant_proto::access::{CheckRequest, CheckResponse, RoleVerdict};
use passant_proto::convert;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, refuse};
use crate::access::explain::{Verdict, explain};
use crate::access::{Target, Verb, Who};
use crate::caller::Actor;
use crate::serve;
use crate::state::State;

#[async_trait]
impl Access for Api {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let asker = self.actor(&call)?;
        if request.caller.is_some() && self.operator(&call).is_err() {
            let remedy =
                "only administrators may ask about others: leave the caller out to ask about yourself";
            return Err(refuse(Refusal::denied(remedy)));
        }
        let subject = self.subject(request.caller.clone(), &asker).await.map_err(refuse)?;
        let state = self.journal.state();
        let question = Question::parse(&request, &state, &asker).map_err(refuse)?;
        let operator = self.administers(&subject, &state);
        let (callers, who) = (self.callers.clone(), subject.who);
        // Every role may have many entries to look at: not on the I/O threads.
        let judge =
            move || explain(callers.rights(), &who, operator, question.verb, &question.targets(), &state);
        let judged = tokio::task::spawn_blocking(judge).await;
        let Verdict { allowed, reason, roles } = judged.map_err(|lost| refuse(Refusal::internal(lost)))?;
        let roles = roles.into_iter().filter(|verdict| verdict.held || asker.is_operator());
        let roles = roles.map(|verdict| RoleVerdict {
            role: verdict.role.name.clone(),
            held: verdict.held,
            allows: verdict.lack.is_none(),
            lacks: verdict.lack.map(|lack| lack.to_string()).unwrap_or_default(),
        });
        Ok(Response::new(CheckResponse { allowed, caller: subject.shown, reason, roles: roles.collect() }))
    }
}

/// Whom the question is about.
struct Subject {
    who: Who,
    shown: String,
    /// It asks about itself, and was let in as an operator.
    is_operator: bool,
}

/// What the question is about.
struct Question {
    verb: Verb,
    standing: Option<Entry>,
    draft: Option<EntryDraft>,
    target: Option<SpiffeId>,
    /// The agent that a join token would make.
    agent: Option<SpiffeId>,
    /// The foreign trust domain that `target` names.
    trust_domain: Option<TrustDomain>,
}

impl Api {
    async fn subject(&self, caller: Option<Caller>, asker: &Actor) -> Result<Subject, Refusal> {
        let who = match caller {
            None => {
                let is_operator = asker.is_operator();
                return Ok(Subject { who: asker.who(), shown: asker.to_string(), is_operator });
            }
            Some(Caller::SpiffeId(text)) => Who::Bearer(
                SpiffeId::parse(&text).map_err(|error| Refusal::invalid(format!("caller: {error}")))?,
            ),
            Some(Caller::Local(user)) if user.gids.is_empty() => {
                let uid = user.uid;
                // The user database may ask the network.
                let gids = tokio::task::spawn_blocking(move || serve::groups_of(uid));
                Who::User { uid, gids: gids.await.map_err(Refusal::internal)? }
            }
            Some(Caller::Local(user)) => {
                Who::User { uid: user.uid, gids: user.gids.into_iter().collect::<BTreeSet<u32>>() }
            }
        };
        Ok(Subject { shown: who.to_string(), who, is_operator: false })
    }

    /// What makes it an administrator, if anything does.
    fn administers(&self, subject: &Subject, state: &State) -> Option<String> {
        if subject.is_operator {
            return Some("it was let in as an administrator".to_owned());
        }
        match &subject.who {
            Who::Bearer(id) => self.callers.administers(id, state),
            Who::User { uid, gids } => self.guests.administers(*uid, gids).map(str::to_owned),
        }
    }
}

impl Question {
    fn parse(request: &CheckRequest, state: &State, asker: &Actor) -> Result<Self, Refusal> {
        let verb = Verb::parse(&request.verb).ok_or_else(|| {
            let verbs: Vec<&str> = Verb::ALL.iter().map(|verb| verb.name()).collect();
            Refusal::invalid(format!("there is no such verb: use one of {}", verbs.join(", ")))
        })?;
        let standing = match request.entry_id.as_str() {
            "" => None,
            text => {
                let entry = EntryId::parse(text)
                    .ok()
                    .and_then(|id| state.entry(&id))
                    .filter(|entry| asker.sees(entry));
                Some(Entry::clone(entry.ok_or_else(|| Refusal::not_found("entry not found"))?))
            }
        };
        let target = match request.target.as_str() {
            "" => None,
            text => {
                Some(SpiffeId::parse(text).map_err(|error| Refusal::invalid(format!("target: {error}")))?)
            }
        };
        let draft = match (&request.entry, &standing) {
            (None, _) => None,
            (Some(wire), Some(standing)) => {
                Some(convert::entry::apply_update(standing, wire, request.input_mask.as_ref())?)
            }
            (Some(wire), None) => Some(convert::entry::draft_from_wire(wire)?),
        };
        let question = Self { verb, standing, draft, target, agent: None, trust_domain: None };
        question.completed(state)
    }

    /// The question, if it holds what its verb acts on.
    fn completed(mut self, state: &State) -> Result<Self, Refusal> {
        let missing = |what: &str| Err(Refusal::invalid(format!("{}: {what} is missing", self.verb)));
        match self.verb {
            Verb::EntryCreate if self.draft.is_none() || self.standing.is_some() => {
                missing("the entry, without the ID of one that stands,")
            }
            Verb::EntryUpdate if self.standing.is_none() || self.draft.is_none() => {
                missing("the ID of an entry, or what it would become,")
            }
            Verb::EntryRead | Verb::EntryDelete if self.standing.is_none() => missing("the ID of an entry"),
            Verb::AgentRead | Verb::AgentEvict | Verb::AgentBan if self.target.is_none() => {
                missing("the agent's SPIFFE ID, as the target,")
            }
            Verb::StopRead | Verb::StopWrite if self.standing.is_none() && self.target.is_none() => {
                missing("the ID of an entry, or an agent's SPIFFE ID as the target,")
            }
            Verb::SvidMint if self.target.is_none() => missing("the SPIFFE ID to mint, as the target,"),
            Verb::BundleWrite | Verb::FederationWrite if self.target.is_none() => {
                missing("the trust domain's SPIFFE ID, as the target,")
            }
            Verb::BundleWrite | Verb::FederationWrite => {
                self.trust_domain = self.target.as_ref().map(SpiffeId::trust_domain);
                Ok(self)
            }
            Verb::TokenCreate => {
                // Tokens are random; any will do.
                let token =
                    Token::parse("00000000-0000-4000-8000-000000000000").map_err(Refusal::internal)?;
                self.agent = Some(token.agent_id(state.trust_domain()).map_err(Refusal::internal)?);
                Ok(self)
            }
            Verb::EntryCreate
            | Verb::EntryUpdate
            | Verb::EntryRead
            | Verb::EntryDelete
            | Verb::AgentRead
            | Verb::AgentEvict
            | Verb::AgentBan
            | Verb::SvidMint
            | Verb::BundleRead
            | Verb::FederationRead
            | Verb::AuthorityRead
            | Verb::AuthorityRotate
            | Verb::AuthorityRevoke
            | Verb::AuditRead
            | Verb::IdentityExplain
            | Verb::StopRead
            | Verb::StopWrite => Ok(self),
        }
    }

    /// All of what is acted on; each must be allowed.
    fn targets(&self) -> Vec<Target<'_>> {
        let entries = self.standing.as_ref().map(|entry| Target::Entry(entry.into()));
        let entries = entries.into_iter().chain(self.draft.as_ref().map(|draft| Target::Draft(draft.into())));
        if let Some(name) = &self.trust_domain {
            return vec![Target::TrustDomain(name)];
        }
        match (self.verb, &self.target, &self.agent) {
            (Verb::EntryRead | Verb::EntryCreate | Verb::EntryUpdate | Verb::EntryDelete, ..) => {
                entries.collect()
            }
            (
                Verb::AgentRead | Verb::AgentEvict | Verb::AgentBan | Verb::StopRead | Verb::StopWrite,
                Some(agent),
                _,
            ) => {
                vec![Target::Agent(agent)]
            }
            (Verb::StopRead | Verb::StopWrite, None, _) => entries.collect(),
            (Verb::SvidMint, Some(id), _) => vec![Target::Svid(id)],
            (Verb::TokenCreate, alias, Some(agent)) => vec![Target::Token { agent, alias: alias.as_ref() }],
            (_, _, _) => vec![Target::Whole],
        }
    }
}
