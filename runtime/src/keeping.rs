//! What a program is loaded with: pieces of an earlier load, and those made anew.

use crate::cache::Cache;
use crate::load::{Devices, constant_bytes};
use crate::store::Store;
use bytes::Bytes;
use cupola_backend::{Keeper, Kept, Key, KeyHasher};
use cupola_ir::kernel::{Library, Unit};
use cupola_passes::{Compiled, SlotId, Step, Storage};
use cupola_source::ContentHash;
use rustc_hash::FxHashMap;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Names bytes of constants without reading them, by the file they lie in. Equal keys must stand for equal bytes.
#[derive(Clone)]
pub struct Identify(Arc<dyn Fn(&[u8]) -> Option<Key> + Send + Sync>);

impl Identify {
    /// Asks `identify`, which says nothing of bytes that it does not know.
    pub fn new(identify: impl Fn(&[u8]) -> Option<Key> + Send + Sync + 'static) -> Identify {
        Identify(Arc::new(identify))
    }
}

impl fmt::Debug for Identify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identify")
    }
}

/// Where a program's pieces come from and go to.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// A store that came with the model.
    pub store: Option<Store>,
    /// Stores of earlier processes.
    pub cache: Option<Cache>,
    /// Hold on to all pieces, for [`crate::Program::pieces`].
    pub all: bool,
}

impl Keep {
    fn anything(&self) -> bool {
        self.store.is_some() || self.cache.is_some() || self.all
    }
}

/// The pieces of one program.
#[derive(Debug)]
pub(crate) struct Keeping {
    key: Key,
    /// Keys of units, by plan in the order of loading; of loops they are not asked for.
    units: Vec<Vec<Key>>,
    identify: Option<Identify>,
    names: Mutex<FxHashMap<(usize, usize), Key>>,
    found: Option<Store>,
    cache: Option<Cache>,
    all: bool,
    pieces: Mutex<FxHashMap<Key, Bytes>>,
    /// Whether pieces were made that the store lacks.
    made: AtomicBool,
    /// Whether there are units of devices that keep nothing.
    others: bool,
    writer: Mutex<Option<JoinHandle<()>>>,
    written: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Keeping {
    /// What there is of a compiled graph's pieces; `None` when nothing is to be kept.
    pub fn new(
        compiled: &Compiled,
        devices: &Devices,
        keep: &Keep,
        identify: Option<Identify>,
    ) -> Option<Arc<Keeping>> {
        if !keep.anything() {
            return None;
        }
        let mut keeping = Keeping {
            key: Key(0),
            units: vec![],
            identify,
            names: Mutex::default(),
            found: None,
            cache: keep.cache.clone(),
            all: keep.all,
            pieces: Mutex::default(),
            made: AtomicBool::new(false),
            others: false,
            writer: Mutex::default(),
            written: AtomicBool::new(false),
        };
        let mut hasher = KeyHasher::default();
        let identities: Vec<Option<Key>> = devices.iter().map(|d| d.identity()).collect();
        identities.hash(&mut hasher);
        keeping.add(compiled, &identities, &mut hasher);
        keeping.key = hasher.key();
        let own = keep.store.as_ref().filter(|s| s.key() == keeping.key);
        if keep.store.is_some() && own.is_none() {
            tracing::info!(
                "the model was compiled for another processor or release, or with other options: compiling it anew"
            );
        }
        let kept = || keep.cache.as_ref()?.open(keeping.key);
        keeping.found = own.cloned().or_else(kept);
        Some(Arc::new(keeping))
    }

    /// Adds the units of a plan and its regions, and the constants that pieces are made of, to the key of the program.
    fn add(&mut self, compiled: &Compiled, identities: &[Option<Key>], hasher: &mut KeyHasher) {
        let placed = compiled.units.iter();
        let keys: Vec<Key> = placed
            .map(|placed| {
                self.others |= identities[placed.device.0 as usize].is_none();
                let mut hasher = KeyHasher::default();
                identities[placed.device.0 as usize].hash(&mut hasher);
                describe(&placed.unit, &mut hasher);
                hasher.key()
            })
            .collect();
        keys.hash(hasher);
        let plan = self.units.len();
        self.units.push(keys);
        for step in &compiled.plan.steps {
            if let Step::Launch { unit, buffers } = step
                && let Unit::Library(_) = compiled.units[*unit].unit
            {
                self.names(plan, compiled, buffers).hash(hasher);
            }
        }
        for body in compiled.bodies() {
            self.add(body, identities, hasher);
        }
    }

    /// The key of a constant: by where it lies, or by what it is.
    fn name(&self, bytes: &Bytes) -> Key {
        let place = (bytes.as_ptr() as usize, bytes.len());
        if let Some(known) = lock(&self.names).get(&place) {
            return *known;
        }
        let identify = self.identify.as_ref();
        let by_place = identify.and_then(|Identify(identify)| identify(bytes));
        let name = by_place.unwrap_or_else(|| Key(ContentHash::of(bytes).0));
        lock(&self.names).insert(place, name);
        name
    }

    /// The keys of slots that hold constants. What is made of constants is named by the unit that makes it and by their names.
    fn names(&self, plan: usize, compiled: &Compiled, slots: &[SlotId]) -> Vec<Option<Key>> {
        let name = |slot: &SlotId| {
            let slot = &compiled.plan.slots[slot.0 as usize];
            let Storage::Made { by } = slot.storage else {
                return constant_bytes(slot).map(|b| self.name(&b));
            };
            let once = &compiled.plan.once[by];
            let operands = once.buffers.iter().filter(|s| **s != once.result).copied();
            let operands: Vec<SlotId> = operands.collect();
            let names = self.names(plan, compiled, &operands);
            Some(Key::of(&(self.units[plan][once.unit], names)))
        };
        slots.iter().map(name).collect()
    }

    /// Where what a unit makes of its constants is kept.
    pub fn kept(
        self: &Arc<Keeping>,
        plan: usize,
        compiled: &Compiled,
        unit: usize,
        buffers: &[SlotId],
    ) -> Kept {
        let names = self.names(plan, compiled, buffers);
        Kept {
            keeper: self.clone(),
            key: Key::of(&(self.units[plan][unit], names)),
        }
    }

    /// Whether nothing had to be made.
    pub fn is_complete(&self) -> bool {
        !self.others && !self.made.load(Relaxed)
    }

    /// Key and pieces of the program, all of them if that was asked for.
    pub fn pieces(&self) -> (Key, Vec<(Key, Bytes)>) {
        (self.key, sorted(lock(&self.pieces).clone()))
    }

    /// Begins to write a store into the cache, once, when something was made that it lacks. Returns before it is written.
    pub fn write(&self) {
        if self.written.swap(true, Relaxed) {
            return;
        }
        let pieces = sorted(match self.all {
            true => lock(&self.pieces).clone(),
            false => std::mem::take(&mut *lock(&self.pieces)),
        });
        let (Some(cache), false) = (self.cache.clone(), !self.made.load(Relaxed)) else {
            return;
        };
        let key = self.key;
        let thread = std::thread::Builder::new().name("cupola-store".into());
        let begun = thread.spawn(move || cache.put(key, &pieces));
        *lock(&self.writer) = begun
            .inspect_err(|e| tracing::debug!("no thread to write the store: {e}"))
            .ok();
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if let Some(writer) = lock(&self.writer).take()
            && writer.join().is_err()
        {
            tracing::debug!("the store was not written");
        }
    }
}

/// Pieces in an order that does not depend on threads.
fn sorted(pieces: FxHashMap<Key, Bytes>) -> Vec<(Key, Bytes)> {
    let mut all: Vec<(Key, Bytes)> = pieces.into_iter().collect();
    all.sort_by_key(|(key, _)| *key);
    all
}

impl Keeper for Keeping {
    fn find(&self, key: Key) -> Option<Bytes> {
        // Units that are alike share what is made of the same constants.
        if let Some(bytes) = lock(&self.pieces).get(&key) {
            return Some(bytes.clone());
        }
        let bytes = self.found.as_ref()?.find(key)?;
        lock(&self.pieces).insert(key, bytes.clone());
        Some(bytes)
    }

    fn keep(&self, key: Key, bytes: Bytes) {
        self.made.store(true, Relaxed);
        lock(&self.pieces).insert(key, bytes);
    }
}

/// All that a unit says of itself.
fn describe(unit: &Unit, hasher: &mut KeyHasher) {
    match unit {
        Unit::Loops(kernel) => kernel.hash(hasher),
        Unit::Library(Library {
            op,
            sizes,
            operands,
            results,
            epilogue,
        }) => {
            hasher.write_u8(1);
            // Attributes may be floats, which have a text but no hash.
            write!(hasher, "{op:?}").unwrap_or_else(|_| unreachable!("bug: hashing failed"));
            (sizes, operands, results, epilogue).hash(hasher);
        }
    }
}
