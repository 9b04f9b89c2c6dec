//! Executes a plan: binds symbols, launches units, runs host steps and regions.
//!
//! Work of the other devices is submitted before the host computes, so that both go on at the same time; a queue is waited
//! for only when the host needs a result. Where values live is `frame`'s business, how often regions run `control`'s.

use crate::error::{Result, RuntimeError};
use crate::frame::{Frame, Outputs};
use crate::load::{Devices, Loaded};
use crate::pool::{Layouts, Pool};
use crate::queue::Queue;
use crate::record::Recording;
use crate::replicas::Replica;
use crate::value::RunValue;
use cupola_backend::{Buffer, BufferRange, Command, Executable, Launch};
use cupola_ir::eval::{self, Env, Limits, Stop};
use cupola_ir::kernel::Unit;
use cupola_ir::{Bindings, CoreOp, Dim, IrError, NodeId, Op, Tensor, Value, ValueType};
use cupola_passes::{DeviceId, SlotId, Step};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one run shares with its regions.
pub(crate) struct RunCx<'a> {
    pub devices: &'a Devices,
    pub pools: &'a mut [Pool],
    pub layouts: &'a mut Layouts,
    /// What is not yet submitted, by device.
    pub queues: Vec<Queue>,
    /// Packed memory of the plans that run now, those around others first.
    pub blocks: Vec<(DeviceId, Buffer)>,
    pub params: &'a BTreeMap<String, RunValue>,
    pub states: &'a BTreeMap<String, RunValue>,
    pub new_states: BTreeMap<String, RunValue>,
    pub seed: u64,
    pub run: u64,
    pub limits: Limits,
    pub stop: &'a Stop,
    pub launches: u64,
    /// How often the host waited for results of another device.
    pub waits: u64,
    /// How often commands were submitted to other devices.
    pub submissions: u64,
    /// Bytes that the host read of them.
    pub read_bytes: u64,
    /// Bytes of packed memory and of what outlives the run, by the plans that run now.
    pub planned: u64,
    /// The most that `planned` has been.
    pub planned_peak: u64,
    /// Bytes that may be planned.
    pub budget: Option<u64>,
    /// See [`crate::State::gives_back_picked`].
    pub gives_back_picked: bool,
    /// The run's place among those that go on together.
    pub replica: Option<Arc<Replica>>,
    /// Where steps are noted, if anywhere.
    pub recording: Option<&'a mut Recording>,
}

impl RunCx<'_> {
    /// Whether memory is overwritten by none of the plans that run now.
    pub fn is_own(&self, range: &BufferRange) -> bool {
        let mut blocks = self.blocks.iter();
        blocks.all(|(_, block)| !Arc::ptr_eq(block, &range.buffer))
    }
}

/// Runs a plan on inputs in order; gives the outputs in order, where `outputs` says. Those of a region may still be on
/// their way when it returns.
pub(crate) fn execute(
    loaded: &Loaded,
    inputs: Vec<RunValue>,
    outputs: Outputs,
    bindings: Bindings,
    cx: &mut RunCx<'_>,
) -> Result<Vec<RunValue>> {
    execute_with(loaded, &loaded.executables, inputs, outputs, bindings, cx)
}

/// As [`execute`], with these executables for the units.
pub(crate) fn execute_with(
    loaded: &Loaded,
    executables: &[Arc<dyn Executable>],
    inputs: Vec<RunValue>,
    outputs: Outputs,
    bindings: Bindings,
    cx: &mut RunCx<'_>,
) -> Result<Vec<RunValue>> {
    let mut frame = Frame::new(loaded, executables, bindings, cx.blocks.len());
    let planned = cx.planned;
    let result = run(&mut frame, inputs, outputs, cx);
    frame.release_all(cx);
    cx.planned = planned;
    result
}

fn run(
    frame: &mut Frame<'_>,
    inputs: Vec<RunValue>,
    outputs: Outputs,
    cx: &mut RunCx<'_>,
) -> Result<Vec<RunValue>> {
    let is_region = matches!(outputs, Outputs::Region(_));
    let plan = &frame.loaded.compiled.plan;
    let targets = frame.place_outputs(outputs)?;
    frame.bind_inputs(inputs, cx)?;
    if frame.loaded.is_settled {
        let units = frame.loaded.compiled.units.len();
        cx.layouts
            .evaluated(frame.loaded.id)
            .renew(&frame.bindings, units);
    }
    frame.lay_out(cx)?;
    for (i, step) in plan.steps.iter().enumerate() {
        if plan.commits.is_none_or(|step| i <= step) {
            cx.stop.check()?;
        }
        // Where time is recorded, every step has the device for itself.
        if cx.recording.is_none()
            && let Some(group) = plan.concurrent.iter().find(|group| group.contains(&i))
        {
            if i == group.start {
                frame.launch_all(&plan.steps[group.clone()], cx)?;
            }
            frame.release_after(i, cx);
            continue;
        }
        let start = Frame::clock(cx);
        frame.at = i;
        frame.step(i, step, cx)?;
        frame.note(i, step, start, cx)?;
        frame.release_after(i, cx);
    }
    let outputs = frame.outputs(targets, cx)?;
    if !is_region {
        cx.settle()?;
    }
    frame.note_end(cx);
    Ok(outputs)
}

/// Whether a size is another in every run.
fn is_of_run(size: &Dim) -> bool {
    let name = size.as_sym().map(|s| s.name());
    matches!(name, Some(cupola_passes::SEED | cupola_passes::RUN))
}

impl Frame<'_> {
    fn step(&mut self, at: usize, step: &Step, cx: &mut RunCx<'_>) -> Result<()> {
        match step {
            Step::Launch { unit, buffers } => self.launch(*unit, buffers, cx),
            Step::Host {
                node,
                operands,
                results,
            } => self.host_step(*node, operands, results, cx),
            Step::Control {
                node,
                operands,
                results,
                ..
            } => self.control_step(at, *node, operands, results, cx),
            Step::Transfer { from, to } => {
                let value = self.fetch(*from, *to, cx)?;
                self.put(*to, value, cx)
            }
            Step::Bind { sym, from, min } => {
                let value = self.value(*from, cx)?;
                let number = value
                    .as_tensor()
                    .and_then(Tensor::to_i64s)
                    .and_then(|v| v.first().copied());
                let number = number.unwrap_or_else(|| unreachable!("bug: bind of no number"));
                if number < *min {
                    let what = format!("{sym} is {number}, must be at least {min}");
                    return Err(IrError::run("bind_dim", what).into());
                }
                self.bindings.set(sym.clone(), number);
                Ok(())
            }
            Step::Require { node, that } => {
                if that.holds(&self.bindings) {
                    return Ok(());
                }
                let node = self.loaded.compiled.graph.node(*node);
                let origin = node
                    .origins
                    .first()
                    .map_or(String::new(), |o| format!(" of {} '{}'", o.op, o.node));
                Err(IrError::run(
                    format!("{}{origin}", node.op.name()),
                    format!("sizes must satisfy {that}"),
                )
                .into())
            }
            Step::Collective { node, operands } => self.begin(*node, operands, cx),
            Step::Await { node, results } => self.wait_for(*node, results, cx),
            Step::WriteState { slot, from } => {
                let value = self.hold(*from, cx)?;
                cx.new_states.insert(slot.clone(), value);
                Ok(())
            }
        }
    }

    fn launch(&mut self, unit: usize, buffers: &[SlotId], cx: &mut RunCx<'_>) -> Result<()> {
        let device = self.loaded.compiled.units[unit].device;
        let launch = self.prepare(unit, buffers, cx)?;
        let step = (self.loaded.number, self.at);
        cx.enqueue(device, Command::Launch(launch), step)
    }

    /// Launches units of one device that may run at the same time.
    fn launch_all(&mut self, steps: &[Step], cx: &mut RunCx<'_>) -> Result<()> {
        let mut launches = Vec::with_capacity(steps.len());
        let mut device = DeviceId::HOST;
        for step in steps {
            let Step::Launch { unit, buffers } = step else {
                unreachable!("bug: {step:?} cannot run beside others")
            };
            device = self.loaded.compiled.units[*unit].device;
            launches.push(self.prepare(*unit, buffers, cx)?);
        }
        let step = (self.loaded.number, self.at);
        cx.enqueue(device, Command::Concurrent(launches), step)
    }

    fn prepare(&mut self, unit: usize, buffers: &[SlotId], cx: &mut RunCx<'_>) -> Result<Launch> {
        let sizes = self.sizes(unit, cx)?;
        let buffers = buffers
            .iter()
            .map(|s| self.range(*s, cx))
            .collect::<Result<_>>()?;
        cx.launches += 1;
        Ok(Launch {
            executable: self.executables[unit].clone(),
            buffers,
            sizes,
        })
    }

    /// Values of a unit's run-time sizes.
    fn sizes(&self, unit: usize, cx: &mut RunCx<'_>) -> Result<Vec<i64>> {
        let (id, units) = (self.loaded.id, &self.loaded.compiled.units);
        let of = &units[unit].unit;
        if !self.loaded.is_settled {
            return self.evaluate(of, cx);
        }
        if let Some(known) = cx.layouts.evaluated(id).sizes(unit) {
            return Ok(known.clone());
        }
        let sizes = self.evaluate(of, cx)?;
        if !of.sizes().iter().any(is_of_run) {
            cx.layouts.evaluated(id).note(unit, &sizes);
        }
        Ok(sizes)
    }

    fn evaluate(&self, unit: &Unit, cx: &RunCx<'_>) -> Result<Vec<i64>> {
        unit.sizes()
            .iter()
            .map(|d| match d.as_sym().map(|s| s.name()) {
                Some(cupola_passes::SEED) => Ok(cx.seed as i64),
                Some(cupola_passes::RUN) => Ok(cx.run as i64),
                _ => d.eval(&self.bindings).ok_or_else(|| {
                    RuntimeError::Ir(IrError::run(
                        unit.name(),
                        format!("size {d} overflows or is not bound"),
                    ))
                }),
            })
            .collect()
    }

    pub fn node_op(&self, node: NodeId) -> &Op {
        &self.loaded.compiled.graph.node(node).op
    }

    fn host_step(
        &mut self,
        node: NodeId,
        operands: &[SlotId],
        results: &[SlotId],
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        cx.start_others()?;
        let values: Vec<Value> = operands
            .iter()
            .map(|s| self.value(*s, cx))
            .collect::<Result<_>>()?;
        let refs: Vec<&Value> = values.iter().collect();
        let types = self.types(results);
        let mut env = Env::default();
        (env.seed, env.run, env.limits) = (cx.seed, cx.run, cx.limits);
        (env.bindings, env.stop) = (self.bindings.clone(), cx.stop.clone());
        let out = eval::eval_op(self.node_op(node), &refs, &types, &mut env)?;
        self.bindings = env.bindings;
        self.finish(results, out.into_iter().map(RunValue::Host).collect(), cx)
    }

    /// Hands operands to the other replicas.
    fn begin(&mut self, node: NodeId, operands: &[SlotId], cx: &mut RunCx<'_>) -> Result<()> {
        let Op::Core(CoreOp::Collective(op)) = &self.loaded.compiled.graph.node(node).op else {
            unreachable!("bug: {} is no collective", self.node_op(node).name())
        };
        let Some(replica) = cx.replica.clone() else {
            let what = format!("takes {} replicas, and this run has no others", op.replicas);
            return Err(IrError::run("collective", what).into());
        };
        let lent: Vec<RunValue> = (operands.iter())
            .map(|s| self.lend(*s, cx))
            .collect::<Result<_>>()?;
        let values = cx.fetch_all(&lent)?;
        let tensors = values.iter().filter_map(|v| v.as_tensor().cloned());
        let number = replica.start(op, tensors.collect())?;
        self.begun.insert(node, number);
        Ok(())
    }

    /// Waits for what the replicas together make of what they gave.
    fn wait_for(&mut self, node: NodeId, results: &[SlotId], cx: &mut RunCx<'_>) -> Result<()> {
        let (Some(replica), Some(number)) = (cx.replica.clone(), self.begun.remove(&node)) else {
            unreachable!("bug: a collective is waited for that was not begun")
        };
        cx.start_others()?;
        let done = replica.wait(number, cx.stop)?;
        let values = done.tensors.iter().map(|t| t.clone().into()).collect();
        if let Some(recording) = &mut cx.recording {
            recording.travelled((self.loaded.number, self.at), &done);
        }
        self.finish(results, values, cx)
    }

    pub fn types(&self, slots: &[SlotId]) -> Vec<ValueType> {
        let plan = &self.loaded.compiled.plan;
        let types = slots.iter().map(|s| plan.slots[s.0 as usize].ty.clone());
        types.collect()
    }

    /// Binds symbols of result types from actual results and stores them.
    pub fn finish(
        &mut self,
        results: &[SlotId],
        values: Vec<RunValue>,
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        for (slot, value) in results.iter().zip(values) {
            self.bind_type(*slot, &value)
                .map_err(|what| IrError::run("result", what))?;
            self.put(*slot, value, cx)?;
        }
        Ok(())
    }
}
