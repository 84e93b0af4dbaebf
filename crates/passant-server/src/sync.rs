//! How do agents hear at once of what concerns them?
//!
//! | question | file |
//! |---|---|
//! | whom does a change concern? | [`concerned`] |
//! | what has an agent not been told of yet? | `mailbox` |
//! | who watches, and how far has each come? | [`hub`] |
//! | what does an agent hold, and what is to be sent? | `held` |
//! | who has applied a change, and who has not? | [`rollout`] |
//!
//! The journal's writer publishes what it has made durable; the [`hub::Hub`] finds the watching agents that it concerns, and leaves
//! each a note. An agent's task takes its notes whenever it may send, and compares what the agent holds with the state of that
//! moment: so what is sent is never a change but always the difference, and an agent that is slow costs a few notes, not a
//! queue. The exchange itself is in `api/sync/`.

pub mod concerned;
pub(crate) mod held;
pub mod hub;
pub(crate) mod mailbox;
pub mod rollout;
