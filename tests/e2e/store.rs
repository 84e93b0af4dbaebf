//! Is what was acknowledged still there after a crash, and is a data directory kept from a second server?

use passant_tests::site::{ServerOptions, Site};

#[tokio::test]
async fn acknowledged_entries_survive_kill_9() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let mut ids = Vec::new();
    for round in 0..3 {
        let server = site.start_server().await?;
        for n in 0..20 {
            ids.push(site.register(&format!("/r{round}/n{n}"), |_| {}).await?);
        }
        server.kill()?;
    }
    let server = site.start_server().await?;
    let count = site.passant_json(&["entry", "count"])?;
    assert_eq!(count["count"], ids.len());
    for id in &ids {
        site.passant_json(&["entry", "show", id])?;
    }
    server.stop().await
}

#[tokio::test]
async fn a_second_server_on_the_same_data_directory_is_refused() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let other = Site::new(&ServerOptions::default())?;
    let config = std::fs::read_to_string(other.server_config())?;
    let config = config.replace(
        &other.path("server-data").display().to_string(),
        &site.path("server-data").display().to_string(),
    );
    std::fs::write(other.server_config(), config)?;
    let mut second = other.spawn_server()?;
    let ended = second.wait(passant_tests::site::READY_WITHIN).await?;
    assert_eq!(ended.code(), Some(69), "{}", second.log());
    assert!(second.log().contains("another"), "{}", second.log());
    Ok(())
}

#[tokio::test]
async fn a_socket_in_use_is_refused_with_the_remedy() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let other = Site::new(&ServerOptions::default())?;
    let config = std::fs::read_to_string(other.server_config())?;
    let config = config
        .replace(&other.server_socket().display().to_string(), &site.server_socket().display().to_string());
    std::fs::write(other.server_config(), config)?;
    let mut second = other.spawn_server()?;
    let ended = second.wait(passant_tests::site::READY_WITHIN).await?;
    assert_eq!(ended.code(), Some(69), "{}", second.log());
    assert!(second.log().contains("server.sock"), "{}", second.log());
    // The first one is unharmed.
    site.passant_json(&["entry", "count"])?;
    Ok(())
}

#[tokio::test]
async fn a_data_directory_of_another_trust_domain_is_refused() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    site.start_server().await?.stop().await?;
    let config = std::fs::read_to_string(site.server_config())?;
    std::fs::write(site.server_config(), config.replace("\"example.org\"", "\"other.test\""))?;
    let mut server = site.spawn_server()?;
    let ended = server.wait(passant_tests::site::READY_WITHIN).await?;
    assert_ne!(ended.code(), Some(0));
    assert!(server.log().contains("example.org"), "{}", server.log());
    Ok(())
}

#[tokio::test]
async fn lost_keys_are_not_replaced_in_silence() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    site.start_server().await?.stop().await?;
    std::fs::remove_file(site.path("server-data").join("keys.json"))?;
    let mut server = site.spawn_server()?;
    let ended = server.wait(passant_tests::site::READY_WITHIN).await?;
    assert_ne!(ended.code(), Some(0));
    assert!(server.log().contains("key"), "{}", server.log());
    Ok(())
}
