//! From a model's descriptor to interpreters that fit the manifest.
//!
//! Delegates are created by the calling thread, whose priority their thread pools inherit; the long work, in
//! which delegates compile and pack weights, is done by a thread of low priority, so that loading one model
//! does not slow the requests of another. That thread ends with the work: an unprivileged thread could not
//! get its priority back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use edgeward_models::manifest::{Datatype, Signature, TensorSpec};
use edgeward_models::tflite_file;

use super::instance::Instance;
use super::scout::Scout;
use crate::tflite::{Delegate, Graph, Interpreter, Library, Model, Tensor, TfliteError};
use crate::worker::turns;
use crate::worker::wire::{DelegateSetup, Setup};

/// A model with its interpreters.
pub struct Loaded {
    pub model: Arc<Model>,
    pub instances: Vec<Instance>,
    /// Answers may depend on the questions before.
    pub keeps_state: bool,
}

/// Builds and checks all interpreters.
pub fn load(library: &Arc<Library>, model: OwnedFd, setup: &Setup) -> Result<Loaded, String> {
    let model = Model::map(library, &model).map_err(text)?;
    let keeps_state = tflite_file::keeps_state(model.bytes()).map_err(|e| e.to_string())?;
    // For the threads that serve, which all descend from this one.
    turns::take_turns();
    let mut delegates = Vec::with_capacity(setup.instances);
    for _ in 0..setup.instances {
        delegates.push(delegate(library, setup)?);
    }
    let build_all = || {
        let built = delegates.into_iter().map(|d| build(&model, d, setup));
        built.collect::<Result<Vec<_>, _>>()
    };
    Ok(Loaded {
        instances: aside(build_all)?,
        model,
        keeps_state,
    })
}

/// Does work that nobody waits for on a thread of low priority.
fn aside<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("loading".to_owned());
        let thread = builder.spawn_scoped(scope, || {
            turns::give_way(turns::NICENESS);
            work()
        });
        let thread = thread.map_err(|e| format!("the loading thread: {e}"))?;
        let done = thread.join();
        done.map_err(|_| "the loading thread panicked".to_owned())?
    })
}

/// One more interpreter, beside those that answer.
pub fn beside(model: &Arc<Model>, setup: &Setup) -> Result<Instance, String> {
    let delegate = delegate(model.library(), setup)?;
    aside(|| build(model, delegate, setup))
}

/// One more interpreter, for a new sequence.
pub fn another(model: &Arc<Model>, setup: &Setup) -> Result<Instance, String> {
    build(model, delegate(model.library(), setup)?, setup)
}

fn delegate(library: &Arc<Library>, setup: &Setup) -> Result<Option<Delegate>, String> {
    Ok(match &setup.delegate {
        DelegateSetup::Builtin => None,
        DelegateSetup::Xnnpack => Some(Delegate::xnnpack(library, setup.threads).map_err(text)?),
        DelegateSetup::Plugin(plugin) => {
            Some(Delegate::plugin(&plugin.library, &plugin.options).map_err(text)?)
        }
    })
}

fn build(
    model: &Arc<Model>,
    delegate: Option<Delegate>,
    setup: &Setup,
) -> Result<Instance, String> {
    let mut interpreter = Interpreter::build(model, delegate, setup.threads).map_err(text)?;
    let mut graphs = Vec::with_capacity(setup.signatures.len());
    for signature in &setup.signatures {
        let graph = graph(&mut interpreter, signature, setup.signatures.len())?;
        check(&interpreter, graph, signature).map_err(|reason| match graph {
            Graph::Main => reason,
            Graph::Signature(_) => format!("signature {}: {reason}", signature.name),
        })?;
        prepare(&mut interpreter, graph, signature, setup)?;
        graphs.push(graph);
    }
    // A plugin may keep the addresses that tensors had when it was prepared.
    let in_place = !matches!(setup.delegate, DelegateSetup::Plugin(_));
    let scout = (setup.delegate != DelegateSetup::Builtin)
        .then(|| Scout::new(model, &setup.signatures))
        .flatten();
    Ok(Instance::new(interpreter, graphs, in_place, scout))
}

/// A model with one signature is its main graph, whether the file names the signature or not.
pub(super) fn graph(
    interpreter: &mut Interpreter,
    signature: &Signature,
    signatures: usize,
) -> Result<Graph, String> {
    if signatures == 1 {
        return Ok(Graph::Main);
    }
    let names = |tensors: &[TensorSpec]| tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    let (inputs, outputs) = (names(&signature.inputs), names(&signature.outputs));
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    interpreter
        .add_signature(&signature.name, &inputs, &outputs)
        .map_err(text)
}

fn prepare(
    interpreter: &mut Interpreter,
    graph: Graph,
    signature: &Signature,
    setup: &Setup,
) -> Result<(), String> {
    if !has_free_dimensions(signature) {
        return interpreter.allocate(graph).map_err(text);
    }
    // One published model takes no placeholder shape at all, and with XNNPACK dies of it. The evidence brings real
    // shapes; only what no shape can change is better seen here than at a request, and the built-in kernels
    // tell it in peace.
    if setup.golden || setup.delegate != DelegateSetup::Builtin {
        return Ok(());
    }
    allocate_at_least_shapes(interpreter, graph, signature)
}

/// Whether a request decides on the size of an input.
pub(super) fn has_free_dimensions(signature: &Signature) -> bool {
    signature.inputs.iter().any(|i| i.shape.contains(&-1))
}

fn allocate_at_least_shapes(
    interpreter: &mut Interpreter,
    graph: Graph,
    signature: &Signature,
) -> Result<(), String> {
    for (index, input) in signature.inputs.iter().enumerate() {
        let shape: Vec<i32> = input.shape.iter().map(|&d| d.max(1) as i32).collect();
        interpreter
            .resize_input(graph, index, &shape)
            .map_err(text)?;
    }
    match interpreter.allocate(graph) {
        // The dimensions may be impossible, which says nothing of the ones to come. Missing operators do.
        Err(error) if error.is_unresolved() => Err(text(error)),
        _ => Ok(()),
    }
}

/// The interpreter's inputs and outputs are those of the manifest, in its order.
fn check(interpreter: &Interpreter, graph: Graph, signature: &Signature) -> Result<(), String> {
    let counts = [
        (
            "inputs",
            interpreter.input_count(graph),
            signature.inputs.len(),
        ),
        (
            "outputs",
            interpreter.output_count(graph),
            signature.outputs.len(),
        ),
    ];
    for (kind, has, says) in counts {
        if has != says {
            return Err(format!(
                "the model has {has} {kind}; the manifest says {says}"
            ));
        }
    }
    let free = has_free_dimensions(signature);
    for (index, spec) in signature.inputs.iter().enumerate() {
        let tensor = interpreter.input(graph, index);
        check_tensor("input", tensor.as_ref(), spec, true)?;
    }
    for (index, spec) in signature.outputs.iter().enumerate() {
        let tensor = interpreter.output(graph, index);
        // What free inputs do to an output is known after they are given; every answer is checked.
        check_tensor("output", tensor.as_ref(), spec, !free)?;
    }
    Ok(())
}

fn check_tensor(
    kind: &str,
    tensor: Option<&Tensor<'_>>,
    spec: &TensorSpec,
    with_shape: bool,
) -> Result<(), String> {
    let name = &spec.name;
    let tensor = tensor.ok_or_else(|| format!("{kind} {name:?}: the model has no such tensor"))?;
    if tensor.datatype() != Some(spec.datatype) {
        let has = tensor
            .datatype()
            .map_or("a type without a name", Datatype::name);
        return Err(format!(
            "{kind} {name:?}: the model has {has}; the manifest says {}",
            spec.datatype.name()
        ));
    }
    let shape: Vec<i64> = tensor.shape().map(i64::from).collect();
    let fits = tensor.rank() == spec.shape.len()
        && shape
            .iter()
            .zip(&spec.shape)
            .all(|(&has, &says)| says == -1 || says == has);
    // An output that depends on the data has no rank before it is run, or in the file none.
    let unknown = kind == "output" && (tensor.rank() == 0 || spec.shape.is_empty());
    if with_shape && !fits && !unknown {
        return Err(format!(
            "{kind} {name:?}: the model has the shape {shape:?}; the manifest says {:?}",
            spec.shape
        ));
    }
    Ok(())
}

fn text(error: TfliteError) -> String {
    error.to_string()
}
