//! `passant logger`: how much the server logs.

use passant_proto::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use passant_proto::types::LogLevel as Wire;
use serde_json::json;

use crate::args::{LogLevel, Logger, ServerSocket};
use crate::connect::{Server, refused};
use crate::render::Output;

pub(crate) async fn run(command: Logger, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    let mut logger = server.logger();
    let answer = match command {
        Logger::Get => logger.get_logger(GetLoggerRequest {}).await,
        Logger::Set { level } => {
            logger.set_log_level(SetLogLevelRequest { new_level: wire(level).into() }).await
        }
        Logger::Reset => logger.reset_log_level(ResetLogLevelRequest {}).await,
    };
    let answer = answer.map_err(refused)?.into_inner();
    let (current, launch) = (answer.current_level().as_str_name(), answer.launch_level().as_str_name());
    out.print(
        || json!({ "current_level": current, "launch_level": launch }),
        |to| writeln!(to, "Level: {}, configured: {}", current.to_lowercase(), launch.to_lowercase()),
    )
}

fn wire(level: LogLevel) -> Wire {
    match level {
        LogLevel::Error => Wire::Error,
        LogLevel::Warn => Wire::Warn,
        LogLevel::Info => Wire::Info,
        LogLevel::Debug => Wire::Debug,
        LogLevel::Trace => Wire::Trace,
    }
}
