//! Whether what runs by itself has ended, for all that wait for it.

use tokio::sync::watch;

/// With what runs: it says so at the end, or is dropped on the way there.
#[derive(Debug)]
pub(crate) struct Running(watch::Sender<bool>);

/// With those who wait.
#[derive(Debug)]
pub(crate) struct Ended(watch::Receiver<bool>);

pub(crate) fn running() -> (Running, Ended) {
    let (running, ended) = watch::channel(false);
    (Running(running), Ended(ended))
}

impl Running {
    pub(crate) fn done(self) {
        self.0.send_replace(true);
    }
}

impl Ended {
    /// Whether it was done to its end. Dropped, nothing has happened.
    pub(crate) async fn wait(&self) -> bool {
        self.0.clone().wait_for(|is_done| *is_done).await.is_ok()
    }
}
