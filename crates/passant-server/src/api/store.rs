//! How is passant.store.v1.Store answered?

use std::pin::Pin;
use std::sync::Arc;

use passant_proto::store::store_server::Store;
use passant_proto::store::{BackupRequest, BackupResponse};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, by, refuse};
use crate::backup::{self, Holds};
use crate::limits::{BACKUP_PIECE_WITHIN, STREAM_WAITING};
use crate::metrics::Limit;
use crate::record::Act;

#[async_trait]
impl Store for Api {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<BackupResponse, Status>> + Send>>;

    /// Sends the state of this moment. Whoever does not read it is left, so that the state does not stay in memory.
    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let caller = self.local(request.extensions())?;
        let turn = Arc::clone(&self.backups).try_acquire_owned();
        let turn = turn.map_err(|_| refuse(self.quotas.crowded(Limit::Backups)))?;
        // The time first: whatever is not in the backup came later.
        let made_at = self.host.now();
        let state = self.journal.state();
        let (entries, revision) = (Holds::of(&state).entries, state.cursor().revision);
        tracing::info!(%caller, %revision, entries, "sending a backup");
        self.note(Act::SendBackup { revision }, &by(request.extensions(), &caller)).await;
        let (out, stream) = mpsc::channel(STREAM_WAITING);
        tokio::spawn(async move {
            let _turn = turn;
            for data in backup::pieces(&state, made_at) {
                let sent = out.send_timeout(Ok(BackupResponse { data }), BACKUP_PIECE_WITHIN).await;
                if sent.is_err() {
                    tracing::warn!(%caller, %revision, "a backup was not read to its end");
                    return;
                }
            }
            tracing::info!(%caller, %revision, "sent a backup");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
