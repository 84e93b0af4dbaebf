//! How does a show change registration entries, and when was each change acknowledged?

use anyhow::{Context, ensure};
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, ListEntriesRequest,
};
use passant_proto::types;
use passant_tests::api::{channel, past_goodbye};
use passant_tests::site::Site;
use tonic::transport::Channel;

use crate::moment::Moment;

/// An operator on one connection of its own. Clones share it.
#[derive(Clone)]
pub(crate) struct Registrar(EntryClient<Channel>);

impl Registrar {
    /// Connects to the server's socket.
    ///
    /// # Errors
    /// When nothing answers there.
    pub(crate) async fn connect(site: &Site) -> anyhow::Result<Self> {
        Ok(Self(EntryClient::new(channel(&site.server_socket()).await?)))
    }

    /// Creates entries; gives them as they are, and when the answer was here.
    ///
    /// # Errors
    /// When one is refused.
    pub(crate) async fn create(
        &self,
        entries: Vec<types::Entry>,
    ) -> anyhow::Result<(Vec<types::Entry>, Moment)> {
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        let response = past_goodbye(&self.0, request, |mut api, request| async move {
            api.batch_create_entry(request).await
        })
        .await?
        .into_inner();
        let at = Moment::now();
        let mut made = Vec::new();
        for result in response.results {
            well(result.status)?;
            made.push(result.entry.context("an entry")?);
        }
        Ok((made, at))
    }

    /// Changes the fields of an entry that `mask` names.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) async fn update(&self, entry: types::Entry, mask: types::EntryMask) -> anyhow::Result<Moment> {
        let request =
            BatchUpdateEntryRequest { entries: vec![entry], input_mask: Some(mask), output_mask: None };
        let response = past_goodbye(&self.0, request, |mut api, request| async move {
            api.batch_update_entry(request).await
        })
        .await?
        .into_inner();
        let at = Moment::now();
        response.results.into_iter().try_for_each(|result| well(result.status))?;
        Ok(at)
    }

    /// Deletes entries.
    ///
    /// # Errors
    /// When one is refused.
    pub(crate) async fn delete(&self, ids: Vec<String>) -> anyhow::Result<Moment> {
        let request = BatchDeleteEntryRequest { ids };
        let response = past_goodbye(&self.0, request, |mut api, request| async move {
            api.batch_delete_entry(request).await
        })
        .await?
        .into_inner();
        let at = Moment::now();
        response.results.into_iter().try_for_each(|result| well(result.status))?;
        Ok(at)
    }

    /// All entries.
    ///
    /// # Errors
    /// When the server does not tell.
    pub(crate) async fn list(&self) -> anyhow::Result<Vec<types::Entry>> {
        let mut request = ListEntriesRequest { page_size: 1000, ..ListEntriesRequest::default() };
        let mut all = Vec::new();
        loop {
            let page = past_goodbye(&self.0, request.clone(), |mut api, request| async move {
                api.list_entries(request).await
            })
            .await?
            .into_inner();
            all.extend(page.entries);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }
}

fn well(status: Option<types::Status>) -> anyhow::Result<()> {
    let status = status.context("a status")?;
    ensure!(status.code == 0, "refused with {}: {}", status.code, status.message);
    Ok(())
}
