//! Where work runs that blocks: on threads beside the runtime, or, in a simulation, on the runtime's own.

use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Cloning shares them.
#[derive(Clone)]
pub enum Threads {
    /// The system's.
    System,
    /// None: what blocks runs on the runtime's thread, in an order that does not vary, and then waits for the time given
    /// here. It is asked once after each piece of work, for the time that its calls took by the simulation's clock.
    Inline(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Inline(_) => "Inline",
        })
    }
}

/// A thread that was started.
#[derive(Debug)]
pub enum Thread {
    System(std::thread::JoinHandle<()>),
    Inline(tokio::task::JoinHandle<()>),
}

/// Work that panicked.
#[derive(Debug, thiserror::Error)]
#[error("it panicked")]
pub(crate) struct Panicked;

impl Threads {
    /// Runs `work` where it may block.
    ///
    /// Cancel safety: once this was polled, `work` runs to its end all the same.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panicked> {
        match self {
            Self::System => tokio::task::spawn_blocking(work).await.map_err(|_| Panicked),
            Self::Inline(_) => {
                let result = catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked);
                self.settle().await;
                result
            }
        }
    }

    /// Runs `task`, which blocks between its awaits, on a thread of its own. It calls [`Threads::settle`] after each piece
    /// of work that touches the disk.
    pub(crate) fn start(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) -> io::Result<Thread> {
        match self {
            Self::System => {
                let runtime = Handle::current();
                let thread = std::thread::Builder::new().name(name.to_owned());
                thread.spawn(move || runtime.block_on(task)).map(Thread::System)
            }
            Self::Inline(_) => Ok(Thread::Inline(tokio::spawn(task))),
        }
    }

    /// Waits for the time that a simulated disk took. A real one has taken it already.
    pub(crate) async fn settle(&self) {
        if let Self::Inline(took) = self {
            let took = took();
            if !took.is_zero() {
                tokio::time::sleep(took).await;
            }
        }
    }

    /// CPU time of this process. A simulation has none, which would not be the same twice.
    pub(crate) fn cpu_time(&self) -> Duration {
        match self {
            Self::System => Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default(),
            Self::Inline(_) => Duration::ZERO,
        }
    }
}

impl Thread {
    /// Ends it where it stands, in a simulation. A thread of the system's goes on to its end.
    pub(crate) fn abort(&self) {
        if let Self::Inline(task) = self {
            task.abort();
        }
    }

    /// Waits for its end. False if it panicked.
    pub async fn ended(self) -> bool {
        match self {
            Self::System(thread) => matches!(tokio::task::spawn_blocking(move || thread.join()).await, Ok(Ok(()))),
            Self::Inline(task) => task.await.is_ok(),
        }
    }
}
