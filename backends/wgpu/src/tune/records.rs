//! Where the tuner's table comes from and goes to: the cache of the process, and a file.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cupola_backend::Key;

use super::table::{Table, TunedDevice, Winner};
use crate::device::{GpuDevice, identity, lock};
use crate::error::Error;

/// The table of a device, in its places.
#[derive(Debug)]
pub(super) struct Records {
    device: TunedDevice,
    file: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Of this device only.
    table: Table,
    /// Whether it has more than its places.
    changed: bool,
}

impl Records {
    /// What the cache and a file know of a device.
    ///
    /// # Errors
    /// [`Error::Table`] for a damaged file. A damaged entry of the cache is none.
    pub fn open(gpu: &GpuDevice, file: Option<&Path>) -> Result<Self, Error> {
        let device = TunedDevice::new(gpu.facts(), gpu.tier());
        let kept = gpu.keeper().and_then(|keeper| keeper.find(key(gpu)));
        let kept = kept.and_then(|bytes| {
            let text = std::str::from_utf8(&bytes).ok()?;
            Table::parse(text, "in the cache").ok()
        });
        let given = file.map(Table::read).transpose()?.unwrap_or_default();
        let mut table = Table::default();
        for source in [kept.unwrap_or_default(), given] {
            for (class, winner) in source.of(&device).into_iter().flatten() {
                table.add(&device, class, winner.clone());
            }
        }
        Ok(Self {
            device,
            file: file.map(Path::to_owned),
            known: Mutex::new(Known {
                table,
                changed: false,
            }),
        })
    }

    /// Has the device choose by the table.
    pub fn apply(&self, gpu: &GpuDevice) {
        let known = lock(&self.known);
        let winners = known.table.of(&self.device).into_iter().flatten();
        gpu.decide(winners.map(|(class, winner)| (class.as_str(), winner.plan.as_str())));
    }

    /// Adds a winner.
    pub fn note(&self, class: &str, winner: Winner) {
        let mut known = lock(&self.known);
        known.table.add(&self.device, class, winner);
        known.changed = true;
    }

    /// Writes what was added since the last time. What others wrote into the file meanwhile stays there.
    ///
    /// # Errors
    /// [`Error::Table`] where the file cannot be written or was damaged meanwhile.
    pub fn save(&self, gpu: &GpuDevice) -> Result<(), Error> {
        let mut known = lock(&self.known);
        if !known.changed {
            return Ok(());
        }
        if let Some(keeper) = gpu.keeper() {
            keeper.keep(key(gpu), known.table.text().into_bytes().into());
        }
        if let Some(path) = &self.file {
            let mut table = Table::read(path)?;
            table.merge(known.table.clone());
            table.write(path)?;
        }
        known.changed = false;
        Ok(())
    }
}

/// The key of a device's table in the cache.
fn key(gpu: &GpuDevice) -> Key {
    let tier = gpu.tier().name();
    Key::of(&("cupola gpu plans 1", identity(gpu.facts()), tier))
}
