//! How do gRPC clients ask for the health of a daemon, and for what it serves?
//!
//! `grpc.health.v1.Health` follows the same [`Vitals`] as `/ready`, and `grpc.reflection` tells services and messages, both
//! v1 and v1alpha, which older tools ask for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::vitals::Vitals;

/// How often readiness is looked at: what a watcher hears is at most so old.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The largest request to either service, in bytes: the name of a service.
const REQUEST_BYTES: usize = 16 << 10;

/// The health of a daemon as gRPC tells it. Not serving until it is [kept](Health::keep).
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    /// Names that are answered besides the empty one, which stands for the daemon.
    services: &'static [&'static str],
}

/// Why reflection cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("failed to read the descriptions of the services")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

impl Health {
    /// Answers for the daemon as a whole, and by the names of `services`, which share its fate.
    pub async fn of(services: &'static [&'static str]) -> Self {
        let health = Self { reporter: HealthReporter::new(), services };
        health.set(ServingStatus::NotServing).await;
        health
    }

    /// `routes` and the health service.
    pub fn add_to(&self, routes: Routes) -> Routes {
        let service = HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()));
        routes.add_service(service.max_decoding_message_size(REQUEST_BYTES))
    }

    /// Follows `vitals` until `stop`; then says that nothing is served, and ends the watches.
    pub async fn keep(mut self, vitals: Arc<dyn Vitals>, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = looks.tick() => {}
            }
            let ready = vitals.readiness().is_ready();
            if known != Some(ready) {
                known = Some(ready);
                self.set(if ready { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
            }
        }
        self.set(ServingStatus::NotServing).await;
        for service in [""].iter().chain(self.services) {
            self.reporter.clear_service_status(service).await;
        }
    }

    async fn set(&self, status: ServingStatus) {
        for service in [""].iter().chain(self.services) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// `routes` and reflection of what `descriptors` describe, and of health. Each is an encoded `FileDescriptorSet`.
///
/// # Errors
/// When `descriptors` cannot be read.
pub fn add_reflection(routes: Routes, descriptors: &[&'static [u8]]) -> Result<Routes, ReflectionError> {
    let describe = || {
        let all = descriptors.iter().copied().chain([tonic_health::pb::FILE_DESCRIPTOR_SET]);
        all.fold(tonic_reflection::server::Builder::configure(), |builder, one| {
            builder.register_encoded_file_descriptor_set(one)
        })
    };
    let v1 = describe().build_v1()?.max_decoding_message_size(REQUEST_BYTES);
    let v1alpha = describe().build_v1alpha()?.max_decoding_message_size(REQUEST_BYTES);
    Ok(routes.add_service(v1).add_service(v1alpha))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio_stream::StreamExt;
    use tonic::Request;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_server::Health as _;

    use super::*;
    use crate::vitals::Readiness;

    #[derive(Default)]
    struct Switch(AtomicBool);

    impl Vitals for Switch {
        fn readiness(&self) -> Readiness {
            let mut readiness = Readiness::default();
            if !self.0.load(Ordering::SeqCst) {
                readiness.trouble("switch", "off");
            }
            readiness
        }

        fn dead(&self) -> BTreeMap<String, String> {
            BTreeMap::new()
        }

        fn metrics(&self) -> String {
            String::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn watchers_hear_of_readiness_and_end_with_the_daemon() {
        let health = Health::of(&["Service"]).await;
        let service = HealthService::from_health_reporter(health.reporter.clone());
        let request = || Request::new(HealthCheckRequest { service: "Service".to_owned() });
        let mut watch = service.watch(request()).await.unwrap().into_inner();
        let mut heard = async || watch.next().await.map(|answer| answer.unwrap().status);
        let (serving, not_serving) = (Some(1), Some(2));
        assert_eq!(heard().await, not_serving);
        let (vitals, stop) = (Arc::new(Switch::default()), CancellationToken::new());
        let kept = tokio::spawn(health.keep(Arc::<Switch>::clone(&vitals), stop.clone()));
        vitals.0.store(true, Ordering::SeqCst);
        assert_eq!(heard().await, serving);
        assert_eq!(service.check(request()).await.unwrap().into_inner().status, 1);
        vitals.0.store(false, Ordering::SeqCst);
        assert_eq!(heard().await, not_serving);
        vitals.0.store(true, Ordering::SeqCst);
        assert_eq!(heard().await, serving);
        stop.cancel();
        assert_eq!(heard().await, not_serving);
        assert_eq!(heard().await, None);
        kept.await.unwrap();
        let unknown = Request::new(HealthCheckRequest { service: "Other".to_owned() });
        assert_eq!(service.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
    }
}
