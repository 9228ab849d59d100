//! Versions, admission, lifecycle and statistics: between the doors and the workers.
//!
//! The doors ask an [`Engine`] for a [`Served`] version, take a slot with [`Served::begin`], fill it and
//! [`Request::infer`]. The fleet side gives it versions: [`Engine::prepare`] proves one beside whatever serves,
//! [`Engine::activate`] routes to it. A verified version that works keeps serving: nothing that a new version,
//! a delegate or a caller does takes it away.
//!
//! Reading order: `engine`, `versions`, `split` and `routes`
//! (which version answers), `shadow` (what another one would have answered), `served` (a request's way), `sequences` (models that keep state), `loaded` (one version), `evidence`, `golden`,
//! `proof` and `aside` (delegates are proven), `supervise` and `poison` (after a crash), `admission`, `budget`, `stats`, `metrics`.

mod admission;
mod aside;
mod attempt;
mod batches;
mod budget;
mod doubt;
pub mod driver_caches;
mod engine;
mod error;
mod evidence;
mod golden;
mod known_names;
mod loaded;
mod memory;
mod metrics;
mod poison;
mod proof;
mod routes;
mod scale;
mod sequences;
mod served;
mod shadow;
mod split;
mod stats;
mod supervise;
mod versions;

pub use admission::check_shape;
pub use engine::{Engine, EngineEvent, Prepared, ServedModel};
pub use error::{LoadFailure, ServeError};
pub use sequences::{Sequence, SequenceId};
pub use served::{Request, Served};
pub use split::StickyKey;
pub use stats::{Figures, Outcome, Statistics};

pub use shadow::{Answer, Difference};
