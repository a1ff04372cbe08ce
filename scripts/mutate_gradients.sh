#!/bin/sh
# Breaks one gradient of `efference-ops` at a time and shows that its exactness tests notice.
#
# Works on a copy of the repository. First every gradient that an operation returns to autograd is broken from the
# outside (times 1.001; last element zero), then some terms are taken out of the sources. Prints a line per mutation and
# fails when one survives. `scripts/mutate_gradients.sh [outside|sources]`
#
# MUTATE_TARGET_DIR: build folder, by default one of its own. Another one is quicker, but must be cleaned of
# `efference-ops` afterwards, because cargo cannot tell the copy from the original.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
CARGO_TARGET_DIR=${MUTATE_TARGET_DIR:-$root/target/mutate}
export CARGO_TARGET_DIR
cd "$root"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -c | tar -x -C "$copy"
cd "$copy"
ops=crates/ops/src
survivors=0

tests() {
    cargo test --release --quiet -p efference-ops --test exactness > "$copy/log" 2>&1
}

# A mutation must compile and make a test fail.
report() {
    if tests; then
        survivors=$((survivors + 1))
        echo "SURVIVED  $1"
    elif grep -q '^test result: FAILED' "$copy/log"; then
        failed=$(sed -n 's/^test result: FAILED.* \([0-9]*\) failed.*/\1/p' "$copy/log")
        echo "noticed   $1 ($failed tests failed)"
    else
        cat "$copy/log"
        echo "mutation does not compile: $1"
        exit 1
    fi
}

outside() {
    cp "$ops/op.rs" "$copy/op.rs.kept"
    # Gradients pass one line of op.rs on their way to autograd.
    awk '{ print } /let grads = op\.backward::<T>\(/ { print "        let grads = mutated(O::NAME, grads);"; hits++ }
         END { exit hits == 1 ? 0 : 1 }' "$copy/op.rs.kept" > "$ops/op.rs"
    cat >> "$ops/op.rs" <<'RUST'

/// MUTATE names an operation, the place of a gradient, and what is done to it; `list` writes down what there is.
fn mutated<T: Float, const N: usize>(name: &str, mut grads: [Option<Vec<T>>; N]) -> [Option<Vec<T>>; N] {
    let Ok(wanted) = std::env::var("MUTATE") else { return grads };
    for (i, grad) in grads.iter_mut().enumerate() {
        let Some(grad) = grad else { continue };
        if wanted == "list" {
            use std::io::Write;
            let file = std::fs::OpenOptions::new().append(true).create(true).open(std::env::var("MUTATE_LIST").unwrap());
            // one write, so that lines of different threads stay whole
            file.unwrap().write_all(format!("{name} {i}\n").as_bytes()).unwrap();
        } else if wanted == format!("{name} {i} scale") {
            grad.iter_mut().for_each(|g| *g = *g * T::of(1.001));
        } else if wanted == format!("{name} {i} last") {
            grad.iter_mut().rev().take(1).for_each(|g| *g = T::ZERO);
        }
    }
    grads
}
RUST
    MUTATE=list MUTATE_LIST="$copy/list" tests || { cat "$copy/log"; echo "the tests fail without a mutation"; exit 1; }
    sort -u "$copy/list" > "$copy/gradients"
    while read -r gradient; do
        for kind in scale last; do
            export MUTATE="$gradient $kind"
            report "$MUTATE"
        done
    done < "$copy/gradients"
    unset MUTATE
    cp "$copy/op.rs.kept" "$ops/op.rs"
}

# source FILE WHAT SED: the expression must change the file.
source_mutation() {
    cp "$ops/$1" "$copy/kept"
    sed "$3" "$copy/kept" > "$ops/$1"
    if cmp -s "$copy/kept" "$ops/$1"; then
        echo "mutation does not apply: $1: $2"
        exit 1
    fi
    report "$1: $2"
    cp "$copy/kept" "$ops/$1"
}

sources() {
    source_mutation norm.rs "layer norm forgets the mean of the gradient" 's/g \* w - level - /g * w - /'
    source_mutation norm.rs "rms norm forgets the part along the row" 's/(g \* w - x \* factor \* along) \* factor/(g * w) * factor/'
    source_mutation norm.rs "the residual gets no gradient of the sum" 's/needs.map(|need| need.then(|| grad.data.to_vec()))/needs.map(|need| need.then(|| vec![T::ZERO; grad.data.len()]))/'
    source_mutation log_softmax.rs "the entropy forgets its mean" 's/{ z - self.mean } else/{ z } else/'
    source_mutation linear_scores.rs "the chosen token gets nothing in addition" 's/\*x += chosen;/let _ = (x, chosen);/'
    source_mutation linear_scores.rs "only the last round counts for the vocabulary" 's/let begin = if start + from == 0 /let begin = if start + from < 9999 /'
    source_mutation rotary_axes.rs "rotation goes forward in backward" 's/let turn = if back { -T::ONE }/let turn = if back { T::ONE }/'
    source_mutation rotary_axes.rs "the transpose reads its own angle" 's/out\[0\] = g\[0\] \* cos\[0\] + g\[1\] \* sin\[1\]/out[0] = g[0] * cos[0] + g[1] * sin[0]/'
    source_mutation embedding.rs "a repeated id counts once" 's/for &at in &positions\[starts\[id\]..starts\[id + 1\]\]/for \&at in positions[starts[id]..starts[id + 1]].iter().take(1)/'
    source_mutation patches.rs "rows of a patch run backwards" 's/y % ph) \* pw/ph - 1 - y % ph) * pw/'
    source_mutation conv.rs "an image's border reads no kernel" 's/(column.max(inside_from), /(column.max(inside_from + 1), /'
    source_mutation conv.rs "only the last sample counts for the weight" 's/let start = if b + first == 0 /let start = if b + first < 9999 /'
    source_mutation half_weights.rs "backward reads the weight's first row" 's/weight.unpack(row \* i + first, /weight.unpack(0 * row + first, /'
}

case ${1:-all} in
    outside) outside ;;
    sources) sources ;;
    *) outside; sources ;;
esac
[ "$survivors" -eq 0 ] || { echo "$survivors mutations survived"; exit 1; }
