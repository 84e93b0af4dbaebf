//! How is spire.api.server.logger.v1.Logger answered?

use passant_core::Refusal;
use passant_daemon::log::{self, Control, Level};
use passant_proto::logger::logger_server::Logger;
use passant_proto::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use passant_proto::types;
use passant_proto::types::LogLevel;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, by, refuse};
use crate::record::Act;

#[async_trait]
impl Logger for Api {
    async fn get_logger(
        &self,
        request: Request<GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        self.local(request.extensions())?;
        Ok(Response::new(shown(control()?)))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = self.local(request.extensions())?;
        let level = level_of(request.get_ref().new_level())
            .ok_or_else(|| refuse(Refusal::invalid("name a log level to set")))?;
        let control = control()?;
        control.set(level).map_err(|error| refuse(Refusal::internal(error)))?;
        tracing::info!(%caller, level = level.name(), "log level set");
        self.note(Act::SetLogLevel(level.name().to_owned()), &by(request.extensions(), &caller)).await;
        Ok(Response::new(shown(control)))
    }

    async fn reset_log_level(
        &self,
        request: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = self.local(request.extensions())?;
        let control = control()?;
        control.reset().map_err(|error| refuse(Refusal::internal(error)))?;
        tracing::info!(%caller, level = control.current().name(), "log level reset");
        let act = Act::ResetLogLevel(control.current().name().to_owned());
        self.note(act, &by(request.extensions(), &caller)).await;
        Ok(Response::new(shown(control)))
    }
}

/// A server inside another program does not have the log to itself.
fn control() -> Result<&'static Control, Status> {
    log::control().ok_or_else(|| {
        refuse(Refusal::precondition("the log belongs to the program that this server runs in"))
    })
}

fn shown(control: &Control) -> types::Logger {
    types::Logger {
        current_level: wire(control.current()).into(),
        launch_level: wire(control.configured()).into(),
    }
}

fn level_of(wire: LogLevel) -> Option<Level> {
    match wire {
        LogLevel::Unspecified => None,
        LogLevel::Panic | LogLevel::Fatal | LogLevel::Error => Some(Level::Error),
        LogLevel::Warn => Some(Level::Warn),
        LogLevel::Info => Some(Level::Info),
        LogLevel::Debug => Some(Level::Debug),
        LogLevel::Trace => Some(Level::Trace),
    }
}

fn wire(level: Level) -> LogLevel {
    match level {
        Level::Error => LogLevel::Error,
        Level::Warn => LogLevel::Warn,
        Level::Info => LogLevel::Info,
        Level::Debug => LogLevel::Debug,
        Level::Trace => LogLevel::Trace,
    }
}
