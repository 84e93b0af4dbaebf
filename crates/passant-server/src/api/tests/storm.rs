//! Is everybody served who comes at once?

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::rig::{Rig, client_config, handshake};
use crate::limits::HANDSHAKES;

#[tokio::test]
async fn more_handshakes_of_one_address_than_are_worked_on_wait_and_none_is_refused() {
    let rig = Rig::start().await;
    let config = client_config(rig.running.bundle(), &rig.host, None);
    let address = rig.running.address();
    // These hold what one address may have worked on, and do not go on.
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES / 2 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
        silent.push(tcp);
    }
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..2 * HANDSHAKES + 10 {
        let config = Arc::clone(&config);
        all.spawn(async move { handshake(address, config).await.map(drop) });
    }
    // Whoever leaves makes room for the next.
    drop(silent);
    while let Some(greeted) = all.join_next().await {
        greeted.unwrap().unwrap();
    }
    let metrics = rig.running.metrics();
    assert!(metrics.contains("passant_server_handshakes_total{result=\"bound\"} 0"), "{metrics}");
}
