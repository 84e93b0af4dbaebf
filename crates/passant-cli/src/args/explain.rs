//! Which flags does `passant explain` take?

use clap::{Args, Subcommand};
use passant_core::{Selector, SpiffeId};

/// Where the agent's socket for administrators is.
#[derive(Args, Clone)]
pub(crate) struct AgentSocket {
    /// The agent's socket for administrators of the node: a path, with or without unix://
    #[arg(
        long = "agent-socket",
        value_name = "PATH",
        env = "PASSANT_AGENT_SOCKET",
        default_value = "/var/lib/passant/agent/admin.sock"
    )]
    pub(crate) admin: String,
}

#[derive(Subcommand)]
pub(crate) enum Explain {
    /// A process of this node: asks the agent, and the server too if its socket is here
    Pid {
        /// The process
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        pid: u32,
        /// The SPIFFE ID that it is to have; any, if left out
        #[arg(long, value_parser = SpiffeId::parse)]
        spiffe_id: Option<SpiffeId>,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// This node, whatever its processes: asks the agent, and the server too if its socket is here
    Node {
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// A SPIFFE ID: asks the server
    SpiffeId {
        /// The SPIFFE ID that a workload is to have
        #[arg(value_parser = SpiffeId::parse)]
        id: SpiffeId,
        /// The agent on whose node the workload runs
        #[arg(long, value_parser = SpiffeId::parse)]
        agent: Option<SpiffeId>,
        /// A selector that the workload has
        #[arg(long = "selector", value_name = "KIND:VALUE", value_parser = Selector::parse)]
        selectors: Vec<Selector>,
    },
    /// A workload of which only the selectors are known: asks the server
    Selectors {
        /// The selectors that the workload has
        #[arg(required = true, value_name = "KIND:VALUE", value_parser = Selector::parse)]
        selectors: Vec<Selector>,
        /// The agent on whose node the workload runs
        #[arg(long, value_parser = SpiffeId::parse)]
        agent: Option<SpiffeId>,
    },
    /// An agent: asks the server
    Agent {
        /// Its SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        id: SpiffeId,
    },
}
