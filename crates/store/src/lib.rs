//! The disk under the store: preparing and opening its files, and two engines that carry out the
//! store's disk operations, an io_uring ring in the thread that owns the disk and, where that is
//! refused, a few blocking threads.

pub mod areas;
pub mod blocking;
mod data_end;
pub mod device;
pub mod driver;
pub mod engine;
pub mod files;
pub mod offline;
pub mod ready;
pub mod ring;

pub use areas::Areas;
pub use driver::{Disk, DiskConfig};
pub use engine::{
    DurableMethod, Engine, EngineChoice, Measured, drain, measure_durable, open_engine,
};
pub use files::{Space, StoreFiles, StoreLock, space};
pub use ready::Ready;
