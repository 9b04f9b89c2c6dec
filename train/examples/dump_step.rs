//! Prints the graph of a step.
use cupola_ir::{Bindings, DType, Sym};
use cupola_train::{Optimiser, StepOptions, zoo};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (built, optimiser) = match args[1].as_str() {
        "mnist_cnn" => (zoo::mnist_cnn(false), Optimiser::adam()),
        "lstm_lm" => (zoo::lstm_lm(&zoo::Lstm { vocabulary: 1000, embedding: 100, hidden: 256, ..zoo::Lstm::default() }), Optimiser::sgd()),
        _ => (zoo::gpt(&zoo::Gpt { layers: 2, vocabulary: 512, ..zoo::Gpt::default() }), Optimiser::adamw()),
    };
    let built = built.unwrap();
    let autocast = args.get(2).map(|_| DType::BF16);
    let settings = StepOptions { autocast, ..StepOptions::default() };
    let step = built.net.train_step(built.loss, &optimiser, &settings).unwrap();
    let _ = (Bindings::default(), Sym::new("x"));
    println!("{}", cupola_ir::graph::text::print(&step.graph));
}
