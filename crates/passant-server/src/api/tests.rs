//! Does a server in this process answer as SPIRE's clients expect?

mod access;
mod agents;
mod audit;
mod entries;
mod explain;
mod federation;
mod import;
mod limits;
mod local_authority;
mod options;
mod rig;
mod stops;
mod store;
mod storm;
mod svids;
mod sync;
mod transport;
mod watch;

use tokio::sync::oneshot;

use super::to_the_end;

#[tokio::test]
async fn what_was_begun_is_done_even_if_its_caller_leaves() {
    let (done, told) = oneshot::channel();
    let (go, waits) = oneshot::channel::<()>();
    let act = async move {
        waits.await.unwrap();
        done.send(()).unwrap();
        Ok(())
    };
    let mut call = Box::pin(to_the_end(act));
    tokio::select! {
        biased;
        _ = &mut call => panic!("it is not done"),
        () = std::future::ready(()) => {}
    }
    drop(call);
    go.send(()).unwrap();
    told.await.unwrap();
}
