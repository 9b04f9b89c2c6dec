//! Vector programs as Cranelift functions: vectors of 128 bits, several to a register where it has more lanes, and
//! lane by lane where the machine has no vector form of an operation.
//!
//! Here are the function, its blocks and registers; `arithmetic`, `convert` and `memory` have the instructions.
//!
//! The function is `fn(arguments, begin, end)` where `arguments` points to [`crate::jit::Arguments`].

mod arithmetic;
mod convert;
mod memory;

use super::helpers::Helper;
use crate::vector::{
    BinOp, CmpOp, Conv, Elem, Inst, Op, Pattern, Place, Program, Reg, Type, UnOp, Var,
};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{
    self, F32, F32X4, F64, F64X2, I8, I8X16, I16, I16X8, I32, I32X4, I64, I64X2,
};
use cranelift_codegen::ir::{
    AbiParam, AtomicRmwOp, BlockArg, ConstantData, Endianness, Function, InstBuilder, MemFlagsData,
    SigRef, Signature, Value,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use rustc_hash::FxHashMap;

/// Bytes of a machine vector.
const VECTOR: u32 = 16;

/// Offset of the address of zeros in [`crate::jit::Arguments`].
const ZEROS: i32 = 32;

/// Offset of the address of the table of host functions in [`crate::jit::Arguments`].
const HOST: i32 = 40;

/// The signature of compiled programs.
pub(crate) fn signature(call_conv: CallConv) -> Signature {
    let mut s = Signature::new(call_conv);
    s.params = vec![AbiParam::new(I64); 3];
    s
}

/// Writes a program into an empty function of [`signature`].
pub(crate) fn emit(
    program: &Program,
    function: &mut Function,
    context: &mut FunctionBuilderContext,
    config: TargetFrontendConfig,
    has_fma: bool,
) {
    let mut f = FunctionBuilder::new(function, context);
    let entry = f.create_block();
    f.append_block_params_for_function_params(entry);
    f.switch_to_block(entry);
    let [arguments, begin, end] = [0, 1, 2].map(|i| f.block_params(entry)[i]);
    let flags = plain();
    let pointer = |f: &mut FunctionBuilder, at| f.ins().load(I64, flags, arguments, at);
    let buffers = pointer(&mut f, 0);
    let sizes = pointer(&mut f, 8);
    let fault_word = pointer(&mut f, 16);
    let fault = f.declare_var(I32);
    let none = f.ins().iconst(I32, 0);
    f.def_var(fault, none);
    let mut e = Emit {
        program,
        f,
        arguments,
        buffers,
        sizes,
        range: [begin, end],
        fault,
        faults: false,
        values: vec![],
        spans: vec![(0, 0); program.registers.len()],
        vars: vec![],
        signatures: FxHashMap::default(),
        constants: FxHashMap::default(),
        has_fma,
    };
    for ty in &program.vars {
        let one = e.part_type(*ty);
        let all = (0..e.parts(*ty)).map(|_| e.f.declare_var(one)).collect();
        e.vars.push(all);
    }
    e.block(&program.body);
    if e.faults {
        e.report(fault_word);
    }
    e.f.ins().return_(&[]);
    e.f.seal_all_blocks();
    e.f.finalize(config);
}

/// Accesses that do not trap and need no alignment.
fn plain() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Bits keep their place in memory order.
fn bits() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

fn scalar_type(elem: Elem) -> types::Type {
    match elem {
        Elem::I8 | Elem::M8 | Elem::M16 | Elem::M32 | Elem::M64 => I8,
        Elem::I16 => I16,
        Elem::I32 => I32,
        Elem::I64 => I64,
        Elem::F32 => F32,
        Elem::F64 => F64,
    }
}

fn vector_type(elem: Elem) -> types::Type {
    match elem {
        Elem::F32 => F32X4,
        Elem::F64 => F64X2,
        _ => int_vector(elem.bits()),
    }
}

fn int_vector(bits: u32) -> types::Type {
    match bits {
        8 => I8X16,
        16 => I16X8,
        32 => I32X4,
        _ => I64X2,
    }
}

type Parts = Vec<Value>;

struct Emit<'a> {
    program: &'a Program,
    f: FunctionBuilder<'a>,
    /// The address of the [`crate::jit::Arguments`].
    arguments: Value,
    buffers: Value,
    sizes: Value,
    range: [Value; 2],
    fault: Variable,
    faults: bool,
    values: Vec<Value>,
    spans: Vec<(u32, u32)>,
    vars: Vec<Vec<Variable>>,
    signatures: FxHashMap<Helper, SigRef>,
    constants: FxHashMap<(types::Type, [u8; 16]), cranelift_codegen::ir::Constant>,
    has_fma: bool,
}

impl Emit<'_> {
    /// Machine registers of a type.
    fn parts(&self, ty: Type) -> usize {
        match ty.lanes {
            1 => 1,
            n => (u32::from(n) * ty.elem.bits() / 8 / VECTOR).max(1) as usize,
        }
    }

    fn part_type(&self, ty: Type) -> types::Type {
        match ty.lanes {
            1 => scalar_type(ty.elem),
            _ => vector_type(ty.elem),
        }
    }

    fn ty(&self, reg: Reg) -> Type {
        self.program.ty(reg)
    }

    fn get(&self, reg: Reg) -> Parts {
        let (start, len) = self.spans[reg.0 as usize];
        self.values[start as usize..(start + len) as usize].to_vec()
    }

    /// The value of a register of one lane.
    fn one(&self, reg: Reg) -> Value {
        self.values[self.spans[reg.0 as usize].0 as usize]
    }

    fn set(&mut self, reg: Reg, parts: &[Value]) {
        self.spans[reg.0 as usize] = (self.values.len() as u32, parts.len() as u32);
        self.values.extend_from_slice(parts);
    }

    fn block(&mut self, block: &[Inst]) {
        for inst in block {
            match inst {
                Inst::Let(reg, op) => {
                    let parts = self.op(op, self.ty(*reg));
                    self.set(*reg, &parts);
                }
                Inst::Set(var, reg) => {
                    let parts = self.get(*reg);
                    for (v, x) in self.vars[var.0 as usize].clone().into_iter().zip(parts) {
                        self.f.def_var(v, x);
                    }
                }
                Inst::Store {
                    place,
                    value,
                    guard: None,
                } => self.store(place, *value),
                Inst::Store { .. } => unreachable!("bug: a masked tail in portable code"),
                Inst::Call(helper, args) => {
                    let lanes = self.ty(args[0]).lanes;
                    let args: Vec<Vec<Value>> = args.iter().map(|a| self.lanes(*a)).collect();
                    for k in 0..usize::from(lanes) {
                        let args: Vec<Value> = args.iter().map(|a| a[k]).collect();
                        self.call(*helper, &args);
                    }
                }
                Inst::Fault(mask, fault) => {
                    let any = self.any(*mask);
                    let code = self.f.ins().iconst(I32, *fault as i64);
                    let none = self.f.ins().iconst(I32, 0);
                    let code = self.f.ins().select(any, code, none);
                    let old = self.f.use_var(self.fault);
                    let new = self.f.ins().bor(old, code);
                    self.f.def_var(self.fault, new);
                    self.faults = true;
                }
                Inst::Loop {
                    counter,
                    from,
                    to,
                    step,
                    body,
                } => self.counted(*counter, *from, *to, *step, body),
                Inst::If { cond, body } => {
                    let (then, after) = (self.f.create_block(), self.f.create_block());
                    let cond = self.one(*cond);
                    self.f.ins().brif(cond, then, &[], after, &[]);
                    self.f.switch_to_block(then);
                    self.block(body);
                    self.f.ins().jump(after, &[]);
                    self.f.switch_to_block(after);
                }
            }
        }
    }

    /// A loop that is only reached when it runs at least once.
    fn counted(&mut self, counter: Reg, from: Reg, to: Reg, step: i64, body: &[Inst]) {
        let (head, after) = (self.f.create_block(), self.f.create_block());
        let at = self.f.append_block_param(head, I64);
        let from = self.one(from);
        self.f.ins().jump(head, &[BlockArg::Value(from)]);
        self.f.switch_to_block(head);
        self.set(counter, &[at]);
        self.block(body);
        let next = self.f.ins().iadd_imm_s(at, step);
        let to = self.one(to);
        let more = self.f.ins().icmp(IntCC::SignedLessThan, next, to);
        self.f
            .ins()
            .brif(more, head, &[BlockArg::Value(next)], after, &[]);
        self.f.switch_to_block(after);
    }

    /// Adds the fault bits to the launch's word.
    fn report(&mut self, word: Value) {
        let (some, after) = (self.f.create_block(), self.f.create_block());
        let fault = self.f.use_var(self.fault);
        self.f.ins().brif(fault, some, &[], after, &[]);
        self.f.switch_to_block(some);
        self.f
            .ins()
            .atomic_rmw(I32, plain(), AtomicRmwOp::Or, word, fault);
        self.f.ins().jump(after, &[]);
        self.f.switch_to_block(after);
    }

    fn op(&mut self, op: &Op, ty: Type) -> Parts {
        match op {
            Op::Const(bits) => self.constant(*bits, ty),
            Op::Size(s) => vec![self.f.ins().load(I64, plain(), self.sizes, *s as i32 * 8)],
            Op::Buffer(b) => vec![self.f.ins().load(I64, plain(), self.buffers, *b as i32 * 8)],
            Op::Begin => vec![self.range[0]],
            Op::End => vec![self.range[1]],
            Op::Splat(x) => self.splat(*x, ty),
            Op::Ramp(base, step) => self.ramp(*base, *step, ty),
            Op::Tail(_) => unreachable!("bug: a masked tail in portable code"),
            Op::Pack(all) => {
                let all: Vec<Value> = all.iter().map(|r| self.one(*r)).collect();
                self.pack(ty, &all)
            }
            Op::Extract(x, k) => vec![self.extract(*x, usize::from(*k))],
            Op::Unary(f, x) => self.unary(*f, *x, ty),
            Op::Binary(f, x, y) => self.binary(*f, *x, *y, ty),
            Op::Shift(f, x, n) => {
                let parts = self.get(*x);
                parts
                    .into_iter()
                    .map(|p| self.shift(*f, p, i64::from(*n)))
                    .collect()
            }
            Op::Cmp(f, x, y) => self.cmp(*f, *x, *y),
            Op::Select(m, x, y) => self.select(*m, *x, *y, ty),
            Op::Fma(x, y, z) => self.fma(*x, *y, *z),
            Op::Convert(f, x) => self.convert(*f, *x, ty),
            Op::Load(place, guard) => self.load(place, *guard, ty),
            Op::Call(helper, args) => {
                let args: Vec<Vec<Value>> = args.iter().map(|a| self.lanes(*a)).collect();
                let lanes = usize::from(ty.lanes);
                let results: Vec<Value> = (0..lanes)
                    .map(|k| {
                        let args: Vec<Value> = args.iter().map(|a| a[k]).collect();
                        self.call(*helper, &args)
                    })
                    .map(|v| v.unwrap_or_else(|| unreachable!("bug: {helper:?} gives no value")))
                    .collect();
                self.pack(ty, &results)
            }
            Op::Reduce(f, x) => vec![self.reduce(*f, *x)],
            Op::Get(v) => self.variable(*v),
        }
    }

    fn variable(&mut self, var: Var) -> Parts {
        let vars = self.vars[var.0 as usize].clone();
        vars.into_iter().map(|v| self.f.use_var(v)).collect()
    }

    fn constant(&mut self, bits: u64, ty: Type) -> Parts {
        if ty.lanes == 1 {
            return vec![match ty.elem {
                Elem::F32 => self.f.ins().f32const(f32::from_bits(bits as u32)),
                Elem::F64 => self.f.ins().f64const(f64::from_bits(bits)),
                e => self
                    .f
                    .ins()
                    .iconst(scalar_type(e), low(bits, scalar_type(e))),
            }];
        }
        let size = (ty.elem.bits() / 8) as usize;
        let mut bytes = [0u8; 16];
        for lane in bytes.chunks_mut(size) {
            lane.copy_from_slice(&bits.to_le_bytes()[..size]);
        }
        let x = self.vector_constant(vector_type(ty.elem), bytes);
        vec![x; self.parts(ty)]
    }

    fn vector_constant(&mut self, ty: types::Type, bytes: [u8; 16]) -> Value {
        let handle = match self.constants.get(&(ty, bytes)) {
            Some(h) => *h,
            None => {
                let data = ConstantData::from(&bytes[..]);
                let h = self.f.func.dfg.constants.insert(data);
                self.constants.insert((ty, bytes), h);
                h
            }
        };
        self.f.ins().vconst(ty, handle)
    }

    fn splat(&mut self, x: Reg, ty: Type) -> Parts {
        let from = self.ty(x);
        let mut v = self.one(x);
        if from.elem.is_mask() {
            // 1 becomes all ones.
            v = self.f.ins().ineg(v);
            let lane = scalar_type(Elem::int(ty.elem.bits()));
            if lane != I8 {
                v = self.f.ins().sextend(lane, v);
            }
        }
        let part = self.f.ins().splat(vector_type(ty.elem), v);
        vec![part; self.parts(ty)]
    }

    fn ramp(&mut self, base: Reg, step: i64, ty: Type) -> Parts {
        let base = self.one(base);
        let base = self.f.ins().splat(I64X2, base);
        (0..self.parts(ty) as i64)
            .map(|p| {
                let mut bytes = [0u8; 16];
                for (lane, chunk) in bytes.chunks_mut(8).enumerate() {
                    let offset = (p * 2 + lane as i64).wrapping_mul(step);
                    chunk.copy_from_slice(&offset.to_le_bytes());
                }
                let offsets = self.vector_constant(I64X2, bytes);
                self.f.ins().iadd(base, offsets)
            })
            .collect()
    }

    /// One lane as a scalar; of a mask as 0 or 1.
    fn extract(&mut self, x: Reg, k: usize) -> Value {
        let ty = self.ty(x);
        let parts = self.get(x);
        self.extract_from(&parts, ty, k)
    }

    fn extract_from(&mut self, parts: &[Value], ty: Type, k: usize) -> Value {
        if ty.lanes == 1 {
            return parts[0];
        }
        let per = (VECTOR * 8 / ty.elem.bits()) as usize;
        let v = self.f.ins().extractlane(parts[k / per], (k % per) as u8);
        if ty.elem.is_mask() {
            self.f.ins().icmp_imm_s(IntCC::NotEqual, v, 0)
        } else {
            v
        }
    }

    /// All lanes as scalars.
    fn lanes(&mut self, x: Reg) -> Vec<Value> {
        let n = usize::from(self.ty(x).lanes);
        (0..n).map(|k| self.extract(x, k)).collect()
    }

    /// Scalars as lanes; masks are not packed.
    fn pack(&mut self, ty: Type, all: &[Value]) -> Parts {
        if ty.lanes == 1 {
            return all.to_vec();
        }
        let per = (VECTOR * 8 / ty.elem.bits()) as usize;
        let vector = vector_type(ty.elem);
        let is_small = ty.elem.bits() < 32;
        all.chunks(per)
            .map(|lanes| {
                let mut v = if is_small {
                    self.f.ins().splat(vector, lanes[0])
                } else {
                    self.f.ins().scalar_to_vector(vector, lanes[0])
                };
                for (k, x) in lanes.iter().enumerate().skip(1) {
                    v = self.f.ins().insertlane(v, *x, k as u8);
                }
                v
            })
            .collect()
    }

    fn call(&mut self, helper: Helper, args: &[Value]) -> Option<Value> {
        let signature = match self.signatures.get(&helper) {
            Some(s) => *s,
            None => {
                let (params, result) = helper.signature();
                let mut s = Signature::new(self.f.func.signature.call_conv);
                s.params = params
                    .iter()
                    .map(|e| AbiParam::new(scalar_type(*e)))
                    .collect();
                s.returns = result
                    .iter()
                    .map(|e| AbiParam::new(scalar_type(*e)))
                    .collect();
                let s = self.f.import_signature(s);
                self.signatures.insert(helper, s);
                s
            }
        };
        let flags = plain();
        let table = self.f.ins().load(I64, flags, self.arguments, HOST);
        let at = (helper.place() * size_of::<usize>()) as i32;
        let address = self.f.ins().load(I64, flags, table, at);
        let call = self.f.ins().call_indirect(signature, address, args);
        self.f.inst_results(call).first().copied()
    }
}

/// A mask for branching.
enum Lanes {
    /// A scalar truth value.
    One(Value),
    /// Bits, and their value when all are set.
    Bits(Value, i64),
}

/// The immediate of an integer constant, sign-extended from the type's width.
fn low(value: u64, ty: types::Type) -> i64 {
    let unused = 64 - ty.bits();
    ((value << unused) as i64) >> unused
}
