//! Who computes a batch: sessions for the shards of this process, and the way to those of others.
//!
//! A batch is cut into shards; each is computed by a session of its own, with its own samples and random numbers. Replicas are
//! what computes at the same time: a device, or a share of the processor's threads, or another process. A replica with several
//! shards computes them in turn. What shards make together does not depend on who computed which.

use super::config::{Config, wrong};
use crate::error::{Error, Result};
use crate::runner::Options;
use cupola_ir::ops::CollectiveKind;
use cupola_ir::{Graph, Tensor};
use cupola_runtime::{
    DeviceSpec, Group, Host, Link, Outputs, Program, Replica, Request, RuntimeError, Session, Turn,
};
use cupola_source::ContentHash;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the replicas of a run are.
pub struct Spread {
    /// Those of this process: the devices of each, and how it compiles for them.
    pub places: Vec<(Arc<Host>, Options)>,
    /// The way to other processes with as many.
    pub link: Option<Box<dyn Link>>,
}

impl Spread {
    /// One replica.
    pub fn alone(host: Arc<Host>, options: &Options) -> Spread {
        Spread {
            places: vec![(host, options.clone())],
            link: None,
        }
    }

    /// Replicas in all processes.
    pub fn replicas(&self) -> usize {
        self.places.len() * self.link.as_ref().map_or(1, |l| l.size())
    }

    /// The shards of a batch: what the configuration says, or one for each replica.
    ///
    /// # Errors
    /// Numbers that do not fit together.
    pub fn shards(&self, config: &Config) -> Result<usize> {
        let replicas = self.replicas();
        let shards = config.shards.unwrap_or(replicas);
        if !replicas.is_power_of_two() || !shards.is_power_of_two() || replicas > shards {
            let what = format!(
                "{replicas} replicas cannot share {shards} shards: both must be powers of two, and no replica may be without one"
            );
            return Err(wrong(what));
        }
        if shards > config.batch {
            let what = format!(
                "a batch of {} has too few samples for {shards} shards",
                config.batch
            );
            return Err(wrong(what));
        }
        Ok(shards)
    }
}

/// The shards of this process.
pub(super) struct Team {
    /// A session for each.
    pub sessions: Vec<Session>,
    replicas: Vec<Arc<Replica>>,
    // Ends its thread after the replicas are gone.
    _group: Option<Group>,
    /// Number of the first shard.
    pub first: usize,
    /// Shards of a batch.
    pub count: usize,
    /// There are other processes.
    is_linked: bool,
}

impl Team {
    /// Compiles the step of a run for every replica of this process.
    ///
    /// # Errors
    /// As for compilation; [`Spread::shards`] was checked before.
    pub fn new(graph: &Graph, spread: Spread, seed: u64, count: usize) -> Result<Team> {
        let places = spread.places.len().max(1);
        let local = count / (spread.replicas() / places).max(1);
        let compile = |(host, options): &(Arc<Host>, Options)| {
            let mut options = options.clone();
            // Devices are timed by running the graph, which one replica alone cannot.
            if count > 1 && options.device == DeviceSpec::Auto {
                options.device = DeviceSpec::Cpu;
            }
            Ok(Arc::new(Program::compile(graph.clone(), host, &options)?))
        };
        let programs = spread.places.iter().map(compile);
        let programs = programs.collect::<Result<Vec<_>>>()?;
        let mut team = Team {
            sessions: vec![],
            replicas: vec![],
            _group: None,
            first: 0,
            count,
            is_linked: spread.link.is_some(),
        };
        let each = (local / places).max(1);
        if count > 1 {
            let turns: Vec<Option<Turn>> = (0..places)
                .map(|_| (each > 1).then(Turn::default))
                .collect();
            let group = Group::new(local, spread.link)?;
            team.replicas = group.replicas(|at| turns[at / each].clone());
            team.first = team.replicas.first().map_or(0, |r| r.number());
            team._group = Some(group);
        }
        for at in 0..local {
            let mut session = Session::new(programs[at / each].clone());
            let mut state = session.state_mut();
            state.seed = seed_of(seed, team.first + at);
            state.replica = team.replicas.get(at).cloned();
            drop(state);
            team.sessions.push(session);
        }
        Ok(team)
    }

    /// The session whose state stands for all: those of the others are the same.
    pub fn leader(&mut self) -> &mut Session {
        &mut self.sessions[0]
    }

    /// Whether this process tells, measures and writes what all have.
    pub fn is_first(&self) -> bool {
        self.first == 0
    }

    /// Runs a request on every shard of this process at once; the outputs of the first.
    ///
    /// # Errors
    /// What went wrong first, where that is known.
    pub fn run(&mut self, requests: Vec<Request>) -> Result<Outputs> {
        run_all(&mut self.sessions, &self.replicas, requests)
    }

    /// As [`Team::run`], in other sessions of the shards.
    ///
    /// # Errors
    /// As [`Team::run`].
    pub fn run_in(&self, sessions: &mut [Session], requests: Vec<Request>) -> Result<Vec<Outputs>> {
        run_each(sessions, &self.replicas, requests)
    }

    /// A session of another program with the place, state and random numbers of a shard's.
    ///
    /// # Errors
    /// State that the program has not.
    pub fn beside(&mut self, at: usize, program: &Arc<Program>) -> Result<Session> {
        let mut beside = Session::new(program.clone());
        let state = self.sessions[at].state_mut();
        let mut copy = beside.state_mut();
        (copy.seed, copy.run) = (state.seed, state.run);
        copy.replica.clone_from(&state.replica);
        let names: Vec<String> = copy.slot_names().map(str::to_string).collect();
        for name in names {
            if let Some(value) = state.slot(&name) {
                copy.set_slot(&name, value.clone())?;
            }
        }
        drop(copy);
        Ok(beside)
    }

    /// What the first process says; the others' own words are not heard.
    ///
    /// # Errors
    /// A process that has failed.
    pub fn agree(&self, said: Vec<u8>) -> Result<Vec<u8>> {
        if !self.is_linked {
            return Ok(said);
        }
        let all = self.exchange(CollectiveKind::Broadcast, |_| Ok(Tensor::vector(&said)))?;
        Ok(all.bytes().to_vec())
    }

    /// Compares the states of all shards of all processes.
    ///
    /// # Errors
    /// [`Error::Replicas`] with the first slot that differs.
    pub fn compare(&mut self) -> Result<()> {
        if self.count == 1 {
            return Ok(());
        }
        let mut digests = vec![];
        for session in &mut self.sessions {
            digests.push(digest(session)?);
        }
        let names: Vec<String> = digests[0].keys().cloned().collect();
        let rows: Vec<Vec<u8>> = (digests.into_iter())
            .map(|d| d.into_values().flatten().collect())
            .collect();
        let len = rows[0].len();
        let all = self.exchange(CollectiveKind::AllGather, |at| {
            Ok(Tensor::vector(&rows[at]))
        })?;
        let all: Vec<&[u8]> = all.bytes().chunks_exact(len.max(1)).collect();
        let size = len / names.len().max(1);
        for (at, name) in names.iter().enumerate() {
            let part = at * size..(at + 1) * size;
            if let Some(other) =
                (1..all.len()).find(|k| all[*k][part.clone()] != all[0][part.clone()])
            {
                let what = format!("'{name}' is another in shard {other} than in shard 0");
                return Err(Error::Replicas(what));
            }
        }
        Ok(())
    }

    /// The first half of [`Team::agree`], for what may be answered later: after a step that the processes do meanwhile.
    ///
    /// # Errors
    /// As [`Team::agree`].
    pub fn begin_to_agree(&self, said: &[u8]) -> Result<Begun> {
        match self.is_linked {
            true => self.begin(CollectiveKind::Broadcast, |_| Ok(Tensor::vector(said))),
            false => Ok(Begun::default()),
        }
    }

    /// The second half: what the first process said; `None` where there is no other.
    ///
    /// # Errors
    /// As [`Team::agree`].
    pub fn agreed(&self, begun: Begun) -> Result<Option<Vec<u8>>> {
        let all = self.end(begun)?;
        Ok(all.map(|all| all.bytes().to_vec()))
    }

    /// Exchanges a tensor of each shard; all get the same.
    fn exchange(
        &self,
        kind: CollectiveKind,
        given: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let got = self.end(self.begin(kind, given)?)?;
        Ok(got.unwrap_or_else(|| Tensor::vector::<u8>(&[])))
    }

    fn begin(
        &self,
        kind: CollectiveKind,
        given: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<Begun> {
        let mut begun = vec![];
        for (at, replica) in self.replicas.iter().enumerate() {
            begun.push(replica.begin(kind, vec![given(at)?])?);
        }
        Ok(Begun(begun))
    }

    fn end(&self, begun: Begun) -> Result<Option<Tensor>> {
        let mut got = None;
        for (replica, number) in self.replicas.iter().zip(begun.0) {
            got = replica.end(number)?.pop();
        }
        Ok(got)
    }
}

/// An exchange on its way: its number for each replica.
#[derive(Debug, Default)]
pub(super) struct Begun(Vec<u64>);

/// The key of a shard's random numbers; the first shard's is the run's own.
fn seed_of(seed: u64, shard: usize) -> u64 {
    // An odd constant other than that of the streams of a graph: the fraction of 3's square root.
    seed ^ (shard as u64).wrapping_mul(0xbb67_ae85_84ca_a73b)
}

/// A hash of every state slot.
fn digest(session: &mut Session) -> Result<BTreeMap<String, Vec<u8>>> {
    let saved = session.state_mut().save()?;
    let each = saved.into_iter().filter_map(|(name, value)| {
        let hash = ContentHash::of(value.as_tensor()?.bytes());
        Some((name, hash.0.to_le_bytes().to_vec()))
    });
    Ok(each.collect())
}

fn run_all(
    sessions: &mut [Session],
    replicas: &[Arc<Replica>],
    requests: Vec<Request>,
) -> Result<Outputs> {
    if let ([session], Some(1)) = (&mut *sessions, Some(requests.len())) {
        let request = requests.into_iter().next().unwrap_or_default();
        return Ok(session.execute(request)?);
    }
    let mut all = run_each(sessions, replicas, requests)?;
    Ok(all.swap_remove(0))
}

/// Runs every session at the same time.
fn run_each(
    sessions: &mut [Session],
    replicas: &[Arc<Replica>],
    requests: Vec<Request>,
) -> Result<Vec<Outputs>> {
    let mut pending = vec![];
    let mut failed: Option<RuntimeError> = None;
    for (at, (session, request)) in sessions.iter_mut().zip(requests).enumerate() {
        match session.submit(request) {
            Ok(run) => pending.push(run),
            Err(e) => {
                // Those that run already wait for this one.
                if let Some(replica) = replicas.get(at) {
                    replica.fail(&e);
                }
                failed = Some(e);
                break;
            }
        }
    }
    let mut all = vec![];
    for run in pending {
        match run.wait() {
            Ok(outputs) => all.push(outputs),
            // The others were only told of it.
            Err(e) => match (&failed, &e) {
                (Some(_), RuntimeError::Replica { .. } | RuntimeError::Exchange(_)) => {}
                (Some(RuntimeError::Replica { .. }) | None, _) => failed = Some(e),
                (Some(_), _) => {}
            },
        }
    }
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::graph::text::parse;

    /// Doubles a state, since both shards add theirs.
    const SUM: &str = r#"graph @sum {
  slot "v": f32[1] = tensor f32[1] [0.0]
  slot "w": f32[2] = tensor f32[2] [1.0, 2.0]
  %0 = read_state {slot: "w", ty: f32[2]}
  %1 = collective(%0) {kind: "all_reduce_sum", replicas: 2}
  %2 = write_state(%1) {slot: "w"}
  return "y" = %2
}"#;

    fn team(places: usize) -> Team {
        let graph = parse(SUM).unwrap_or_else(|e| panic!("{e}"));
        let options = Options {
            threads: 1,
            ..Options::default()
        };
        let place = |_| (Arc::new(Host::new()), options.clone());
        let spread = Spread {
            places: (0..places).map(place).collect(),
            link: None,
        };
        Team::new(&graph, spread, 7, 2).expect("two shards")
    }

    #[test]
    fn shards_that_come_apart_are_found() {
        for places in [1, 2] {
            let mut team = team(places);
            let outputs = team.run(vec![Request::new(), Request::new()]);
            let outputs = outputs.expect("a run");
            let y = outputs[0].1.to_host().expect("a value");
            assert_eq!(
                y.as_tensor().and_then(Tensor::to_vec),
                Some(vec![2.0f32, 4.0])
            );
            team.compare().expect("equal states");
            let other = Tensor::vector(&[2.0f32, 4.5]);
            let slot = team.sessions[1].state_mut().set_slot("w", other);
            slot.expect("a slot");
            let error = team.compare().expect_err("other states").to_string();
            assert!(
                error.contains("'w' is another in shard 1 than in shard 0"),
                "{error}"
            );
        }
    }

    #[test]
    fn shards_draw_other_numbers_and_the_first_those_of_the_run() {
        let seeds: std::collections::BTreeSet<u64> = (0..8).map(|s| seed_of(3, s)).collect();
        assert_eq!((seeds.len(), seed_of(3, 0)), (8, 3));
    }
}
