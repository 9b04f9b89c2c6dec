//! Executes a plan: binds symbols, launches units, runs host steps and regions.
//!
//! Commands are queued per device. Work of the other devices is submitted before the host computes, so that both go on
//! at the same time; a queue is waited for only when the host needs a result. Where values live is `frame`'s business.

use crate::error::{Result, RuntimeError};
use crate::frame::Frame;
use crate::load::{Devices, Loaded};
use crate::pool::{Layouts, Pool};
use crate::record::Recording;
use crate::value::{Place, RunValue};
use cupola_backend::{Command, Launch};
use cupola_ir::eval::{self, Env, Limits, Stop};
use cupola_ir::{Bindings, IrError, NodeId, Op, Tensor, Value, ValueType};
use cupola_passes::{DeviceId, SlotId, Step};
use std::collections::BTreeMap;

/// What one run shares with its regions.
pub(crate) struct RunCx<'a> {
    pub devices: &'a Devices,
    pub pools: &'a mut [Pool],
    pub layouts: &'a mut Layouts,
    pub params: &'a BTreeMap<String, RunValue>,
    pub states: &'a BTreeMap<String, RunValue>,
    pub new_states: BTreeMap<String, RunValue>,
    pub seed: u64,
    pub run: u64,
    pub limits: Limits,
    pub stop: &'a Stop,
    pub launches: u64,
    /// Bytes of packed memory and of what outlives the run, by the plans that run now.
    pub planned: u64,
    /// The most that `planned` has been.
    pub planned_peak: u64,
    /// Bytes that may be planned.
    pub budget: Option<u64>,
    /// Where steps are noted, if anywhere.
    pub recording: Option<&'a mut Recording>,
}

/// Runs a plan on inputs in order; gives the outputs in order, where `places` says (on the host past its end).
pub(crate) fn execute(
    loaded: &Loaded,
    inputs: Vec<RunValue>,
    places: Vec<Place>,
    bindings: Bindings,
    cx: &mut RunCx<'_>,
) -> Result<Vec<RunValue>> {
    let mut frame = Frame::new(loaded, bindings, cx.devices.len());
    let planned = cx.planned;
    let result = run(&mut frame, inputs, places, cx);
    frame.release_all(cx);
    cx.planned = planned;
    result
}

fn run(
    frame: &mut Frame<'_>,
    inputs: Vec<RunValue>,
    places: Vec<Place>,
    cx: &mut RunCx<'_>,
) -> Result<Vec<RunValue>> {
    let plan = &frame.loaded.compiled.plan;
    let places = frame.place_outputs(places)?;
    frame.bind_inputs(inputs, cx)?;
    frame.lay_out(cx)?;
    for (i, step) in plan.steps.iter().enumerate() {
        cx.stop.check()?;
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
    let outputs = (plan.outputs.iter().zip(places).enumerate())
        .map(|(i, (slot, place))| frame.output(i, *slot, place, cx))
        .collect::<Result<_>>()?;
    frame.settle(cx)?;
    frame.note_end(cx);
    Ok(outputs)
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
        self.enqueue(device, Command::Launch(launch), cx)
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
        self.enqueue(device, Command::Concurrent(launches), cx)
    }

    fn prepare(&mut self, unit: usize, buffers: &[SlotId], cx: &mut RunCx<'_>) -> Result<Launch> {
        let sizes = self.sizes(unit, cx)?;
        let buffers = buffers
            .iter()
            .map(|s| self.range(*s, cx))
            .collect::<Result<_>>()?;
        cx.launches += 1;
        Ok(Launch {
            executable: self.loaded.executables[unit].clone(),
            buffers,
            sizes,
        })
    }

    fn enqueue(&mut self, device: DeviceId, command: Command, cx: &RunCx<'_>) -> Result<()> {
        self.queues[device.0 as usize].push(command);
        if cx.recording.is_some() {
            self.queued[device.0 as usize].push(self.at);
        }
        // Without a queue of its own the host runs at once, while operands are in cache.
        if device == DeviceId::HOST {
            self.start_others(cx)?;
            self.flush(device, cx)
        } else {
            Ok(())
        }
    }

    /// Submits what the other devices can do while the host computes.
    fn start_others(&mut self, cx: &RunCx<'_>) -> Result<()> {
        (1..cx.devices.len()).try_for_each(|d| self.flush(DeviceId(d as u32), cx))
    }

    /// Values of a unit's run-time sizes.
    fn sizes(&self, unit: usize, cx: &RunCx<'_>) -> Result<Vec<i64>> {
        let unit = &self.loaded.compiled.units[unit].unit;
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

    fn node_op(&self, node: NodeId) -> &Op {
        &self.loaded.compiled.graph.node(node).op
    }

    fn host_step(
        &mut self,
        node: NodeId,
        operands: &[SlotId],
        results: &[SlotId],
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        self.start_others(cx)?;
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

    fn types(&self, slots: &[SlotId]) -> Vec<ValueType> {
        let plan = &self.loaded.compiled.plan;
        let types = slots.iter().map(|s| plan.slots[s.0 as usize].ty.clone());
        types.collect()
    }

    /// Binds symbols of result types from actual results and stores them.
    fn finish(
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

    fn control_step(
        &mut self,
        at: usize,
        node: NodeId,
        operands: &[SlotId],
        results: &[SlotId],
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        self.start_others(cx)?;
        let values: Vec<RunValue> = operands
            .iter()
            .map(|s| self.lend(*s, cx))
            .collect::<Result<_>>()?;
        let loaded = self.loaded;
        let Op::Core(op) = &loaded.compiled.graph.node(node).op else {
            unreachable!("bug: {} has no regions", self.node_op(node).name())
        };
        let (bodies, bindings) = (&loaded.bodies[&at], self.bindings.clone());
        let limits = cx.limits;
        let mut call = |region: usize, inputs: Vec<RunValue>| {
            cx.stop.check()?;
            let places = inner_places(&bodies[region]);
            execute(&bodies[region], inputs, places, bindings.clone(), cx)
        };
        let types = self.types(results);
        let out = eval::run_control(op, values, &types, &limits, &self.bindings, &mut call)?;
        self.finish(results, out, cx)
    }
}

/// What a region gives stays where it is.
fn inner_places(body: &Loaded) -> Vec<Place> {
    let outputs = body.compiled.plan.outputs.iter();
    outputs.map(|_| Place::Device).collect()
}
