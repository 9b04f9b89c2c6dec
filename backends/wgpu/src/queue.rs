//! A GPU's memory and queue: launches become dispatches with buffers, and dispatches submissions.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cupola_backend::{BackendError, Buffer, BufferRange, Device, Launch, Memory, Result};
use rustc_hash::FxHashMap;

use crate::adapter::Timestamps;
use crate::device::buffer::Download;
use crate::device::{
    self, Bindings, Command, DeviceOptions, Dispatch, GpuBuffer, GpuDevice, Pipeline, Submission,
    lock,
};
use crate::effort;
use crate::error::Error;
use crate::executable::WgpuExecutable;
use crate::library::Place;
use crate::tune::Tuner;

/// A GPU's memory and queue.
#[derive(Debug)]
pub struct WgpuDevice {
    gpu: Arc<GpuDevice>,
    tuner: Tuner,
    name: String,
    /// One word that kernels write the number of a faulting launch to.
    faults: GpuBuffer,
    watch: Mutex<FaultWatch>,
    /// Memory between the dispatches of one launch, used again by later ones: the device runs them in order.
    scratch: Mutex<Vec<GpuBuffer>>,
    /// Submissions that may not have run, the oldest first, with the seconds that each is expected to take.
    under_way: Mutex<VecDeque<(Submission, f64)>>,
}

/// Scratch buffers kept.
const MOST_SCRATCH: usize = 32;

/// Seconds that one submission may be expected to take: drivers end what takes longer than about two.
const LONGEST_SUBMISSION: f64 = 0.5;

/// Seconds that submissions under way may be expected to take together, and how many there may be: whoever submits more
/// waits, so that a loop does not run away from the device and a stop takes effect soon.
const MOST_EXPECTED: f64 = 1.0;
const MOST_UNDER_WAY: usize = 16;

/// Launches that can fault.
#[derive(Debug, Default)]
struct FaultWatch {
    /// Number of the last one.
    last: u32,
    /// Names by number, of the recent ones.
    names: FxHashMap<u32, Arc<str>>,
    /// Submissions with such launches, and how many of them had been made when the fault word was last read.
    submitted: u64,
    seen: u64,
}

/// Names remembered: a fault is noticed at the next read-back, which comes sooner.
const MOST_NAMES: usize = 4096;

/// Memory of a GPU.
#[derive(Debug)]
struct WgpuMemory(GpuBuffer);

impl Memory for WgpuMemory {
    fn size(&self) -> usize {
        self.0.size() as usize
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A dispatch with its buffers.
struct Ready {
    pipeline: Arc<Pipeline>,
    bindings: Bindings,
    params: Vec<u32>,
    groups: [u32; 3],
    faults: bool,
    /// Whether it is the first of its launch.
    first: bool,
    /// Seconds it is expected to take.
    expected: f64,
}

impl WgpuDevice {
    /// The queue of a device; `name` is its name in messages.
    pub(crate) fn new(gpu: GpuDevice, name: &str, options: &DeviceOptions) -> Result<Self, Error> {
        let gpu = Arc::new(gpu);
        Ok(Self {
            faults: gpu.allocate(4)?,
            tuner: Tuner::new(&gpu, options)?,
            gpu,
            name: name.to_owned(),
            watch: Mutex::default(),
            scratch: Mutex::default(),
            under_way: Mutex::default(),
        })
    }

    /// The GPU underneath.
    pub(crate) fn gpu(&self) -> &GpuDevice {
        &self.gpu
    }

    fn error(&self, error: Error) -> BackendError {
        match error {
            Error::OutOfMemory { requested, .. } => BackendError::OutOfMemory {
                device: self.name.clone(),
                size: requested,
                what: error.to_string(),
            },
            Error::Limit {
                what: "a buffer",
                needed,
                ..
            } => BackendError::OutOfMemory {
                device: self.name.clone(),
                size: needed,
                what: error.to_string(),
            },
            other => BackendError::Device {
                device: self.name.clone(),
                what: other.to_string(),
            },
        }
    }

    fn foreign(&self, what: &str) -> BackendError {
        BackendError::Device {
            device: self.name.clone(),
            what: format!("{what} of another device"),
        }
    }

    fn memory<'a>(&self, buffer: &'a Buffer) -> Result<&'a GpuBuffer> {
        let memory = buffer.as_any().downcast_ref::<WgpuMemory>();
        memory
            .map(|memory| &memory.0)
            .ok_or_else(|| self.foreign("a buffer"))
    }

    fn executable<'a>(&self, launch: &'a Launch) -> Result<&'a WgpuExecutable> {
        let executable = launch.executable.as_any().downcast_ref();
        executable.ok_or_else(|| self.foreign("code"))
    }

    /// The buffers of a launch.
    fn arguments<'a>(&self, launch: &'a Launch) -> Result<Vec<device::BufferRange<'a>>> {
        let argument = |range: &'a BufferRange| {
            self.memory(&range.buffer)?
                .range(range.offset as u64, range.size as u64)
                .map_err(|error| self.error(error))
        };
        launch.buffers.iter().map(argument).collect()
    }

    /// Compiles what launches need that have not been run before, on all cores.
    fn prepare_all(&self, launches: &[&Launch]) -> Result<()> {
        let mut missing = Vec::new();
        for launch in launches {
            let executable = self.executable(launch)?;
            let arguments = self.arguments(launch)?;
            if !executable.is_prepared(&self.gpu, &launch.sizes, &arguments) {
                missing.push((executable, launch.sizes.as_slice(), arguments));
            }
        }
        let questions = missing
            .iter()
            .filter_map(|(executable, sizes, arguments)| executable.question(sizes, arguments));
        self.tuner
            .meet(questions.collect())
            .map_err(|error| self.error(error))?;
        type Missing<'a> = (&'a WgpuExecutable, &'a [i64], Vec<device::BufferRange<'a>>);
        let prepare = |(executable, sizes, arguments): &Missing<'_>| {
            let prepared = executable.prepare(&self.gpu, sizes, arguments);
            prepared.map(drop).map_err(|error| self.error(error))
        };
        if missing.len() < 2 {
            return missing.iter().try_for_each(prepare);
        }
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(entry) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                prepare(entry)?;
            }
            Ok(())
        };
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        std::thread::scope(|scope| {
            // Without further threads this one does it all.
            let others: Vec<_> = (1..cores.min(missing.len()))
                .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let mut outcome = work();
            for other in others {
                let other = other.join().unwrap_or_else(|_| {
                    Err(BackendError::Device {
                        device: self.name.clone(),
                        what: "a compiler thread ended".to_owned(),
                    })
                });
                outcome = outcome.and(other);
            }
            outcome
        })
    }

    /// Memory that nothing else uses until it is given back; contents undefined.
    fn take_scratch(&self, size: u64) -> Result<GpuBuffer> {
        let mut free = lock(&self.scratch);
        let fits = |buffer: &GpuBuffer| {
            let near = (size..=2 * size.max(1 << 16)).contains(&buffer.size());
            near && buffer.first(size).windows() == self.gpu.windows(size)
        };
        let best = (0..free.len())
            .filter(|&at| fits(&free[at]))
            .min_by_key(|&at| free[at].size());
        if let Some(at) = best {
            return Ok(free.remove(at));
        }
        let fresh = self.gpu.allocate(size).or_else(|_| {
            // What is kept for later may be what is missing now.
            free.clear();
            self.gpu.allocate(size)
        });
        fresh.map_err(|error| self.error(error))
    }

    fn give_scratch(&self, buffers: Vec<GpuBuffer>) {
        let mut free = lock(&self.scratch);
        free.extend(buffers);
        let surplus = free.len().saturating_sub(MOST_SCRATCH);
        free.drain(..surplus);
    }

    /// The dispatches of a launch with their buffers.
    fn ready(&self, launch: &Launch, out: &mut Vec<Step>) -> Result<()> {
        let executable = self.executable(launch)?;
        let arguments = self.arguments(launch)?;
        let prepared = executable
            .prepare(&self.gpu, &launch.sizes, &arguments)
            .map_err(|error| self.error(error))?;
        let scratch: Vec<GpuBuffer> = prepared
            .scratch
            .iter()
            .map(|&size| self.take_scratch(size))
            .collect::<Result<_, _>>()?;
        let held: usize = launch.buffers.iter().map(|range| range.size).sum();
        let moved = (held as f64).min(prepared.most_bytes);
        let model = self.gpu.model();
        // Each step is taken to do all there is to do: which one does most is not known.
        let expected = |groups| effort::seconds(&model, moved, prepared.instructions, groups);
        for (at, step) in prepared.steps.iter().enumerate() {
            let mut bound = Vec::with_capacity(step.places.len() + 1);
            for place in &step.places {
                bound.push(match *place {
                    Place::Scratch(at) => scratch[at].first(prepared.scratch[at]),
                    Place::Faults => self.faults.whole(),
                    Place::Book(format) => {
                        let book = self.gpu.book(format);
                        book.map_err(|error| self.error(error))?.whole()
                    }
                    Place::Argument(at) => {
                        *arguments.get(at).ok_or_else(|| BackendError::Device {
                            device: self.name.clone(),
                            what: format!("{} takes more than {at} buffers", executable.name()),
                        })?
                    }
                });
            }
            let mut params = step.params.clone();
            if let Some(at) = step.launch {
                params[at] = self.number(executable.name());
            }
            let bindings = self
                .gpu
                .bind(&step.pipeline, &bound)
                .map_err(|error| self.error(error))?;
            out.push(Step::Run(Ready {
                pipeline: Arc::clone(&step.pipeline),
                bindings,
                params,
                groups: step.groups,
                faults: step.launch.is_some(),
                first: at == 0,
                expected: expected(step.groups),
            }));
        }
        self.give_scratch(scratch);
        Ok(())
    }

    /// A number for a launch that may fault; never 0.
    fn number(&self, name: &Arc<str>) -> u32 {
        let mut watch = lock(&self.watch);
        if watch.names.len() >= MOST_NAMES {
            watch.names.clear();
        }
        watch.last = watch.last.wrapping_add(1).max(1);
        let number = watch.last;
        watch.names.insert(number, Arc::clone(name));
        number
    }

    /// The steps of commands in order, and where those of each command end.
    fn steps(&self, commands: &[cupola_backend::Command]) -> Result<(Vec<Step>, Vec<usize>)> {
        use cupola_backend::Command::{Concurrent, Copy, Launch};
        let launches = commands.iter().flat_map(|command| match command {
            Launch(launch) => std::slice::from_ref(launch),
            Concurrent(launches) => launches,
            Copy { .. } => &[],
        });
        self.prepare_all(&launches.collect::<Vec<_>>())?;
        let mut steps = Vec::with_capacity(commands.len());
        let mut ends = Vec::with_capacity(commands.len());
        for command in commands {
            match command {
                Launch(launch) => self.ready(launch, &mut steps)?,
                Concurrent(launches) => {
                    for launch in launches {
                        self.ready(launch, &mut steps)?;
                    }
                }
                Copy { from, to } => steps.push(Step::Copy {
                    from: from.clone(),
                    to: to.clone(),
                }),
            }
            ends.push(steps.len());
        }
        Ok((steps, ends))
    }

    fn encode<'a>(&self, steps: &'a [Step]) -> Result<Vec<Command<'a>>> {
        let encode = |step: &'a Step| match step {
            Step::Run(ready) => Ok(Command::Dispatch(Dispatch {
                pipeline: &ready.pipeline,
                bindings: &ready.bindings,
                params: &ready.params,
                groups: ready.groups,
            })),
            Step::Copy { from, to } => Ok(Command::Copy {
                source: self.memory(&from.buffer)?,
                source_offset: from.offset as u64,
                target: self.memory(&to.buffer)?,
                target_offset: to.offset as u64,
                size: from.size as u64,
            }),
        };
        steps.iter().map(encode).collect()
    }

    /// Submits steps, once the device has got on with those before.
    fn submit_steps(&self, steps: &[Step], expected: f64) -> Result<()> {
        let commands = self.encode(steps)?;
        while let Some((oldest, is_only)) = self.in_the_way(expected) {
            let waited = self.gpu.wait(&oldest);
            waited.map_err(|error| self.error(error))?;
            if is_only {
                break;
            }
        }
        // Listed in the order in which they are submitted, whatever other threads do.
        let mut under_way = lock(&self.under_way);
        let submission = self.gpu.submit(&commands);
        let submission = submission.map_err(|error| self.error(error))?;
        under_way.push_back((submission, expected));
        Ok(())
    }

    /// The submission to wait for before one that is expected to take so long, and whether it is the only one under way. The
    /// newest stays listed, for whoever waits for all.
    fn in_the_way(&self, expected: f64) -> Option<(Submission, bool)> {
        let mut under_way = lock(&self.under_way);
        let sum: f64 = under_way.iter().map(|(_, seconds)| seconds).sum();
        if under_way.len() < MOST_UNDER_WAY && sum + expected <= MOST_EXPECTED {
            return None;
        }
        let is_only = under_way.len() == 1;
        let oldest = match is_only {
            true => under_way.front().cloned(),
            false => under_way.pop_front(),
        };
        Some((oldest?.0, is_only))
    }

    /// Remembers that steps which may write the fault word have been submitted.
    fn note_faults(&self, steps: &[Step]) {
        let can_fault = |step: &Step| matches!(step, Step::Run(ready) if ready.faults);
        if steps.iter().any(can_fault) {
            lock(&self.watch).submitted += 1;
        }
    }

    /// Submissions made, if any since the last look can have written the fault word.
    fn unread_faults(&self) -> Option<u64> {
        let watch = lock(&self.watch);
        (watch.submitted != watch.seen).then_some(watch.submitted)
    }

    /// Reads what is wanted, and the fault word if any launch since the last look can have written it.
    fn read(&self, wanted: Vec<Download<'_>>) -> Result<()> {
        let submitted = self.unread_faults();
        let mut word = [0; 4];
        let faults = submitted.map(|_| Download {
            buffer: &self.faults,
            offset: 0,
            target: &mut word,
        });
        let mut downloads: Vec<Download<'_>> = wanted.into_iter().chain(faults).collect();
        self.gpu
            .download_all(&mut downloads)
            .map_err(|error| self.error(error))?;
        let mut watch = lock(&self.watch);
        watch.seen = watch.seen.max(submitted.unwrap_or(0));
        let number = u32::from_le_bytes(word);
        if number == 0 {
            return Ok(());
        }
        let unit = watch
            .names
            .get(&number)
            .map_or("a kernel", |name| name)
            .to_owned();
        drop(watch);
        self.gpu
            .upload(&self.faults, 0, &[0; 4])
            .map_err(|error| self.error(error))?;
        Err(BackendError::Fault {
            unit,
            what: "an index or a divisor outside what the op allows".to_owned(),
        })
    }
}

/// A device command that owns what it refers to.
enum Step {
    Run(Ready),
    Copy { from: BufferRange, to: BufferRange },
}

/// How many steps to submit together, and the seconds that they are expected to take: as many as a driver lets pass. Steps
/// of one launch share scratch memory with launches of other threads, so they stay together.
fn worth_submitting(steps: &[Step]) -> (usize, f64) {
    let mut expected = 0.0;
    for (at, step) in steps.iter().enumerate() {
        if let Step::Run(ready) = step {
            if ready.first && at > 0 && expected + ready.expected > LONGEST_SUBMISSION {
                return (at, expected);
            }
            expected += ready.expected;
        }
    }
    (steps.len(), expected)
}

impl Device for WgpuDevice {
    fn alloc(&self, size: usize) -> Result<Buffer> {
        let buffer = self
            .gpu
            .allocate(size as u64)
            .map_err(|error| self.error(error))?;
        Ok(Arc::new(WgpuMemory(buffer)))
    }

    /// New memory is zeros.
    fn alloc_zeroed(&self, size: usize) -> Result<Buffer> {
        self.alloc(size)
    }

    fn upload(&self, to: &BufferRange, bytes: &[u8]) -> Result<()> {
        if bytes.len() != to.size {
            return Err(BackendError::Device {
                device: self.name.clone(),
                what: format!("{} bytes for a range of {}", bytes.len(), to.size),
            });
        }
        let buffer = self.memory(&to.buffer)?;
        self.gpu
            .upload(buffer, to.offset as u64, bytes)
            .map_err(|error| self.error(error))
    }

    fn download(&self, from: &BufferRange, bytes: &mut [u8]) -> Result<()> {
        let mut only = [cupola_backend::Download {
            from,
            target: bytes,
        }];
        self.download_all(&mut only)
    }

    fn download_all(&self, downloads: &mut [cupola_backend::Download<'_>]) -> Result<()> {
        let each = downloads.iter_mut().map(|download| {
            let (from, target) = (download.from, &mut *download.target);
            if target.len() != from.size {
                return Err(BackendError::Device {
                    device: self.name.clone(),
                    what: format!("{} bytes from a range of {}", target.len(), from.size),
                });
            }
            Ok(Download {
                buffer: self.memory(&from.buffer)?,
                offset: from.offset as u64,
                target,
            })
        });
        self.read(each.collect::<Result<_>>()?)
    }

    fn submit(&self, commands: &[cupola_backend::Command]) -> Result<()> {
        let (steps, _) = self.steps(commands)?;
        let mut rest = steps.as_slice();
        while !rest.is_empty() {
            let (count, expected) = worth_submitting(rest);
            let (now, later) = rest.split_at(count);
            self.submit_steps(now, expected)?;
            rest = later;
        }
        self.note_faults(&steps);
        Ok(())
    }

    fn has_clock(&self) -> bool {
        self.gpu.features().timestamps != Timestamps::Absent
    }

    fn submit_timed(
        &self,
        commands: &[cupola_backend::Command],
    ) -> Result<Vec<(Duration, Duration)>> {
        let (steps, ends) = self.steps(commands)?;
        let encoded = self.encode(&steps)?;
        let times = self
            .gpu
            .run_stamped(&encoded)
            .map_err(|error| self.error(error))?;
        self.note_faults(&steps);
        // Copies have no times of their own; they take up none between their neighbours.
        let mut times = times.into_iter();
        let mut now = Duration::ZERO;
        let mut first = 0;
        let mut spans = Vec::with_capacity(ends.len());
        for end in ends {
            let dispatches = steps[first..end]
                .iter()
                .filter(|step| matches!(step, Step::Run(_)))
                .count();
            let own: Vec<(Duration, Duration)> = times.by_ref().take(dispatches).collect();
            let start = own.first().map_or(now, |span| span.0);
            now = own.iter().map(|span| span.1).max().unwrap_or(now);
            spans.push((start, now));
            first = end;
        }
        Ok(spans)
    }

    fn wait(&self) -> Result<()> {
        if self.unread_faults().is_some() {
            // Reading waits for all work before.
            return self.read(vec![]);
        }
        // The device runs submissions in order; copies from the host need none to be safe.
        let Some((last, _)) = lock(&self.under_way).back().cloned() else {
            return Ok(());
        };
        self.gpu.wait(&last).map_err(|error| self.error(error))
    }

    fn is_lost(&self) -> bool {
        self.gpu.is_lost()
    }

    fn trim(&self) {
        lock(&self.scratch).clear();
        self.gpu.trim();
    }

    fn memory_used(&self) -> (u64, u64) {
        let used = self.gpu.memory();
        (used.live, used.peak)
    }
}
