"""Strategies that use no texts: embed, rebasin, svd_subspace, random.

A host in a hidden basis computes what the origin computes, so that a port to it has a known answer: the
logits of the origin with its module.
"""

from itertools import permutations

import numpy as np
import pytest
import torch

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import MethodSpec, PortSpec
from portability.hosts.attention import text_mask
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.module import equal
from portability.porting.base import PortContext
from portability.porting.layer_maps import average_layers
from portability.porting.port import fit_head, port
from portability.porting.spaces import Space, weight_of
from portability.porting.strategies.embed import EMBED, scales, units
from portability.porting.strategies.random import NOTE
from portability.porting.strategies.rebasin import REBASIN, Matching, permutation
from portability.porting.weighed import folded
from support.hidden import Basis, hide
from support.peft_methods import KINDS
from support.tiny import METHODS, model, noisy, sentences, tokenizer

LORA = MethodSpec("lora", "peft", *KINDS["lora"], 1e-3)
TEXTS = [row["text"] for row in sentences(8, 3)]
TURNED = Basis("permuted", values=True, meetings=True, heads=True)
BASES = {
    "bert permuted": ("bert", Basis("permuted")),
    "bert turned": ("bert", TURNED),
    "gpt2 turned": ("gpt2", TURNED),
    "llama permuted": ("llama", Basis("permuted")),
    "llama flipped": ("llama", Basis("turned", folded=True, flipped=True, values=True, meetings=True,
                                     heads=True)),
    "llama stretched": ("llama", Basis("turned", folded=True, flipped=True, stretched=True)),
    "t5 turned": ("t5", Basis("turned", folded=True, flipped=True, stretched=True, values=True,
                              meetings=True)),
    "gemma2 permuted": ("gemma2", Basis("permuted", stretched=True, values=True, heads=True)),
}
PERMUTED = {
    "bert": ("bert", Basis("permuted", heads=True)), "gpt2": ("gpt2", Basis("permuted", heads=True)),
    "llama": ("llama", Basis("permuted", heads=True)), "t5": ("t5", Basis("permuted")),
}


class Pair:
    """A host whose every number says something, the same one in a hidden basis, and a module of the first."""

    def __init__(self, folder, family, basis, hidden=16):
        self.origin, self.family, self.folder = lively(folder / "origin", family, hidden), family, folder
        self.receiving, self.hidden = hide(self.origin, basis, folder / "hidden")
        one, other = load_host(self.origin), load_host(self.receiving)
        self.bare, attached = self.logits(one, False), attach(one, LORA)
        assert torch.allclose(self.logits(other), self.bare, atol=1e-4), "the hidden host computes the same"
        self.module = noisy(attached, 1)
        put(one, attached.to_parameters(self.module))
        self.known = self.logits(one, False)
        self.attached, self.there = attach(other, LORA), other

    def logits(self, host, there=True):
        read = host.tokenizer(TEXTS, padding=True, return_tensors="pt")
        ids, mask = read["input_ids"], read["attention_mask"]
        more = {"decoder_input_ids": ids} if host.model.config.is_encoder_decoder else {}
        with torch.no_grad():
            found = host.model(input_ids=ids, attention_mask=text_mask(host.family, mask), **more)
        if FAMILIES[self.family].scoring != "head":
            return found.logits[mask.bool()]
        states = found.last_hidden_state[mask.bool()]
        return (states.double() @ self.hidden.stream.T).float() if there else states

    def port(self, strategy, receiving=None, layer_map="stretch", seed=0, **options):
        context = PortContext(self.origin, receiving or self.receiving, self.attached.init_parameters(0),
                              PortSpec(strategy, strategy, layer_map, options=options), load_host, seed=seed)
        return port(self.module, context)

    def error(self, strategy, **options):
        """|ported - known| / |known - bare| of the logits: 1 of a port that does nothing."""
        put(self.there, self.attached.to_parameters(self.port(strategy, **options).module))
        return float((self.logits(self.there) - self.known).norm() / (self.known - self.bare).norm())


def lively(folder, family, hidden=16, layers=2, heads=4, seed=0):
    """A host with gains, biases and embeddings that are not as they begin."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model(family, hidden, layers, heads)
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1 and "norm" in name.lower():
                parameter.data = 0.5 + torch.rand(parameter.shape)
            elif parameter.ndim == 1:
                parameter.data = 0.1 * torch.randn(parameter.shape)
            else:
                parameter.data.normal_(0, 1.0 if "embed" in name else 0.3)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return describe(HostSource(folder.name, path=str(folder)))


def put(host, values):
    parameters = dict(host.model.named_parameters())
    for name, value in values.items():
        parameters[name].data.copy_(value)


def products(module):
    """B A of each place, with all sites of one matrix under each other."""
    found = {}
    for slot, into in module.tensors.items():
        if slot.role == "A":
            outs = [tensor.flatten(0, -2) for one, tensor in module.tensors.items()
                    if one[:3] == slot[:3] and one.role[0] == "B"]
            found[slot[:3]] = torch.cat(outs).double() @ into.flatten(1).double()
    return found


def distance(one, other):
    """Of two modules' products, relative to the second."""
    ours, theirs = products(one), products(other)
    gaps = sum(float((ours[place] - theirs[place]).square().sum()) for place in theirs)
    return (gaps / sum(float(product.square().sum()) for product in theirs.values()))**0.5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    made = {}

    def get(family, basis):
        if (family, basis) not in made:
            made[family, basis] = Pair(tmp_path_factory.mktemp("pair"), family, basis)
        return made[family, basis]

    return get


# ---- embed


@pytest.mark.parametrize("name", BASES)
def test_embed_finds_a_hidden_basis(pair, name):
    hosts = pair(*BASES[name])
    assert hosts.error("embed") <= 1e-4
    assert hosts.error("embed", least_squares=True) <= 1e-4
    assert hosts.error("pad") > 0.3 and hosts.error("random") > 0.3


@pytest.mark.parametrize("strategy", ["embed", "rebasin"])
def test_a_head_goes_through_the_streams_map(pair, strategy):
    hosts = pair(*PERMUTED["bert"])
    head = {"head.weight": torch.randn(2, 16), "head.bias": torch.rand(2)}
    context = PortContext(hosts.origin, hosts.receiving, None, PortSpec(strategy, strategy, "stretch"),
                          load_host)
    found = fit_head(head, context)
    assert torch.allclose(found["head.weight"], (head["head.weight"].double() @ hosts.hidden.stream).float())
    assert torch.equal(found["head.bias"], head["head.bias"])


def test_rotation_stands_more_noise_than_least_squares(pair, tmp_path):
    hosts = pair(*BASES["llama stretched"])
    known = hosts.port("embed").module  # of the host without noise, where it is exact
    made, draw = load_host(hosts.receiving).model, torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data += 0.3 * parameter.data.std() * torch.randn(parameter.shape, generator=draw)
    made.save_pretrained(tmp_path / "noisy")
    tokenizer().save_pretrained(tmp_path / "noisy")
    receiving = describe(HostSource("noisy", path=str(tmp_path / "noisy")))
    rotated, least = (distance(hosts.port("embed", receiving, least_squares=squares).module, known)
                      for squares in (False, True))
    assert rotated < 0.3 and least > 1.3 * rotated


def test_units_are_matched_by_cosine_and_sized_by_least_squares():
    torch.manual_seed(0)
    opening, sized = ([torch.randn(4, 6).double() for _ in range(2)] for _ in range(2))
    matched, ahead, back = units(tuple(opening), tuple(sized))
    cosine = np.array([[float(a @ b / a.norm() / b.norm()) for b in opening[1]] for a in opening[0]])
    best = max(permutations(range(4)), key=lambda places: sum(cosine[i, j] for i, j in enumerate(places)))
    for i, j in enumerate(best):
        assert matched[i].tolist() == [float(k == j) for k in range(4)]
        one, other = sized[0][i].numpy(), sized[1][j].numpy()
        assert float(ahead[j]) == pytest.approx(np.linalg.lstsq(one[:, None], other, rcond=None)[0][0])
        assert float(back[j]) == pytest.approx(np.linalg.lstsq(other[:, None], one, rcond=None)[0][0])
    unsized = units(tuple(opening), None)
    assert torch.equal(unsized[0], matched) and (unsized[1] == 1).all() and (unsized[2] == 1).all()
    fewer = units((opening[0], opening[1][:2]), None)[0]
    assert fewer.sum(0).tolist() == [1, 1] and fewer.sum() == 2


def test_only_a_relu_leaves_the_size_of_a_unit_free(load):
    host = load("gpt2", 16, 1, 2)
    assert not scales(host)
    host.model.config.activation_function = "relu"
    assert scales(host)


def test_embed_between_widths_finds_the_wider_stream(pair, tmp_path):
    hosts = pair(*BASES["llama permuted"])
    wide = lively(tmp_path / "wide", "llama", 24, heads=6, seed=3)
    made = load_host(wide)
    turn = torch.linalg.qr(torch.randn(24, 16, generator=torch.Generator().manual_seed(1)).double())[0].T
    origin = load_host(hosts.origin).model.get_input_embeddings().weight.double()
    made.model.get_input_embeddings().weight.data = (3 * origin @ turn).float()
    loaded = {hosts.origin.name: load_host(hosts.origin), wide.name: made}
    context = PortContext(hosts.origin, wide, None, PortSpec("embed", "embed", "stretch"),
                          lambda spec: loaded[spec.name], needs=EMBED.needs)
    places = [Space("decoder", 0, site, side) for site, side in (
        ("query", "in"), ("query", "out"), ("key", "out"), ("attention_out", "in"), ("ffn_down", "in"))]
    maps = EMBED.maps(context, [(place, place) for place in places])
    stream, query, key, mixed, ffn = (maps[place, place] for place in places)
    assert torch.allclose(stream, turn, atol=1e-6)
    assert query.shape == mixed.shape == (16, 24) and key.shape == (8, 12) and ffn.shape == (32, 48)
    assert all(float(matrix.norm()) > 0 for matrix in maps.values())


def test_too_few_shared_tokens_are_counted(tmp_path):
    one, other = (lively(tmp_path / name, "llama", 32, 1, seed=seed) for seed, name in enumerate(("a", "b")))
    context = PortContext(one, other, None, PortSpec("embed", "embed", "stretch"), load_host,
                          needs=EMBED.needs)
    place = Space("decoder", 0, "query", "in")
    with pytest.raises(UserError, match="'a' to 'b': their vocabularies share 31 tokens, .* at least 32"):
        EMBED.maps(context, [(place, place)])


@pytest.mark.parametrize("strategy", ["embed", "rebasin", "svd_subspace"])
def test_unknown_options_are_named(pair, strategy):
    with pytest.raises(UserError, match=f"unknown option of port '{strategy}' .*'ridge'"):
        pair(*PERMUTED["llama"]).port(strategy, ridge=1)


# ---- rebasin


@pytest.mark.parametrize("name", PERMUTED)
def test_rebasin_finds_a_permutation(pair, name):
    hosts = pair(*PERMUTED[name])
    assert hosts.error("rebasin") <= 1e-5
    assert hosts.error("pad") > 0.3 and hosts.error("random") > 0.3


def matching(hosts):
    spec = PortSpec("rebasin", "rebasin", "stretch")
    return Matching(PortContext(hosts.origin, hosts.receiving, None, spec, load_host, needs=REBASIN.needs))


def test_rebasins_objective_is_the_sum_of_inner_products(pair):
    hosts = pair(*PERMUTED["llama"])
    work = matching(hosts)
    draw = torch.Generator().manual_seed(0)
    found = {name: torch.randperm(size, generator=draw) for name, size in work.sizes.items()}
    one, other = load_host(hosts.origin), load_host(hosts.receiving)
    total = float(((one.model.get_input_embeddings().weight.double() @ permutation(found["stream"]))
                   * other.model.get_input_embeddings().weight).sum())
    kinds = {"query": "query", "key": "key", "value": "value", "attention_out": "stream", "ffn_gate": "ffn",
             "ffn_up": "ffn", "ffn_down": "stream"}
    reads = {"attention_out": "mixed", "ffn_down": "ffn"}
    for layer in range(2):
        def named(kind, layer=layer):
            return permutation(found[kind if kind == "stream" else f"decoder.{layer}.{kind}"])

        for site, kind in kinds.items():
            ours, theirs = (folded(host, "decoder", layer, site).matrix() for host in (one, other))
            moved = named(kind).T @ ours @ named(reads.get(site, "stream"))
            total += float((moved * theirs).sum())
    assert work.objective(found) == pytest.approx(total)


def test_rebasin_holds_no_matrix_beside_the_hosts_own(pair):
    hosts = pair(*PERMUTED["llama"])
    loaded = {spec.name: load_host(spec) for spec in (hosts.origin, hosts.receiving)}
    spec = PortSpec("rebasin", "rebasin", "stretch")
    work = Matching(PortContext(hosts.origin, hosts.receiving, None, spec, lambda host: loaded[host.name],
                                needs=REBASIN.needs))
    own = [{one.untyped_storage().data_ptr() for one in host.model.parameters()} for host in loaded.values()]
    assert len(work.edges) == 14
    for edge in work.edges:
        for side, there in zip(edge.hosts, own, strict=True):
            assert side.weight.untyped_storage().data_ptr() in there
            assert side.weight.dtype == torch.float32 and side.matrix().dtype == torch.float64


def test_random_starts_find_it_where_no_token_is_shared(pair):
    hosts = pair(*PERMUTED["llama"])
    work = matching(hosts)
    best = work.objective(work.descend(0)) - float((work.tables[0] @ permutation(
        work.descend(0)["stream"]) * work.tables[1]).sum())
    work.tables = tuple(table[:0] for table in work.tables)
    reached = [work.objective(work.descend(start)) / best for start in range(1, 9)]
    assert max(reached) == pytest.approx(1) and min(reached) < 0.5, "some starts end in a worse place"


def test_rebasin_carries_a_number_a_unit(pair, tmp_path):
    hosts = pair(*PERMUTED["bert"])
    spec = MethodSpec("ia3", "peft", *KINDS["ia3"], 1e-3)
    one, other = (attach(load_host(host), spec) for host in (hosts.origin, hosts.receiving))
    module = noisy(one, 1)
    context = PortContext(hosts.origin, hosts.receiving, other.init_parameters(0),
                          PortSpec("rebasin", "rebasin", "stretch"), load_host)
    done = port(module, context).module
    place = next(slot for slot in module.tensors if slot[:3] == ("encoder", 1, "ffn_down"))
    known = module.tensors[place].flatten().double() @ hosts.hidden.map(Space("encoder", 1, "ffn_down", "in"))
    assert torch.allclose(done.tensors[place].flatten().double(), known, atol=1e-6)
    assert not torch.allclose(module.tensors[place].flatten().double(), known, atol=1e-2)


@pytest.mark.parametrize(("hidden", "layers", "says"), [
    (24, 2, "differ in hidden .16 and 24."), (16, 3, "differ in encoder layers .2 and 3.")])
def test_rebasin_refuses_other_shapes(pair, tmp_path, hidden, layers, says):
    hosts = pair(*PERMUTED["bert"])
    other = lively(tmp_path / "other", "bert", hidden, layers)
    context = PortContext(hosts.origin, other, attach(load_host(other), LORA).init_parameters(0),
                          PortSpec("rebasin", "rebasin", "stretch"), load_host)
    with pytest.raises(UserError, match=says):
        port(hosts.module, context)


def test_rebasin_refuses_layers_that_move(pair):
    with pytest.raises(UserError, match="layer map sends .*encoder.1.* to .*encoder.0"):
        pair(*PERMUTED["bert"]).port("rebasin", layer_map="1,0")
    with pytest.raises(UserError, match="starts must be a whole number from 1 on, got 0"):
        pair(*PERMUTED["bert"]).port("rebasin", starts=0)


@pytest.mark.parametrize("family", ["bart", "phi3", "modernbert"])
@pytest.mark.parametrize("strategy", ["embed", "rebasin"])
def test_the_host_itself_needs_no_other_coordinates(tmp_path, family, strategy):
    spec = lively(tmp_path / "host", family)
    host = load_host(spec)
    attached = attach(host, LORA)
    module, plain = noisy(attached, 1), load_host(spec)
    context = PortContext(spec, spec, attached.init_parameters(0), PortSpec(strategy, strategy, "stretch"),
                          lambda _: plain)
    assert distance(port(module, context).module, module) < 1e-5


# ---- svd_subspace


@pytest.mark.parametrize("name", ["bert turned", "gpt2 turned", "llama flipped"])
def test_singular_subspaces_find_no_basis(pair, name):
    assert 0.7 < pair(*BASES[name]).error("svd_subspace") < 1.6


def test_on_the_host_itself_it_is_a_shrunken_copy(pair):
    hosts = pair(*BASES["bert turned"])
    done = hosts.port("svd_subspace", hosts.origin)
    for place, ours in products(done.module).items():
        theirs = products(hosts.module)[place]
        assert 0.05 < float(ours.norm() / theirs.norm()) < 0.95
        inner, square = float((ours * theirs).sum()), float(ours.square().sum())
        assert inner == pytest.approx(square, rel=1e-3), "a projection"
    whole = hosts.port("svd_subspace", hosts.origin, energy=1.0).module
    for place, theirs in products(hosts.module).items():
        if place[2] in ("query", "key", "value", "attention_out"):  # square: all directions are kept
            assert torch.allclose(products(whole)[place], theirs, atol=1e-4)


def directions(weight, energy, side):
    """numpy's, by the eigenvectors of W^T W or W W^T."""
    square = weight.T @ weight if side == "in" else weight @ weight.T
    sizes, vectors = np.linalg.eigh(square)
    sizes, vectors = sizes[::-1], vectors[:, ::-1]
    count = next(k for k in range(1, len(sizes) + 1) if sizes[:k].sum() >= energy * sizes.sum())
    return vectors[:, :count]


@pytest.mark.parametrize("name", ["bert turned", "llama flipped"])
def test_each_matrix_has_its_own_projector(pair, name):
    """Key, value and gate read what query and up read, and are still projected by their own weights."""
    hosts = pair(*BASES[name])
    done, host = hosts.port("svd_subspace", energy=0.6), load_host(hosts.receiving)
    for (stack, layer, site), ours in products(done.module).items():
        weight = weight_of(host, Space(stack, layer, site, "out")).double().numpy()
        into, out = (directions(weight, 0.6, side) for side in ("in", "out"))
        known = out @ out.T @ products(hosts.module)[stack, layer, site].numpy() @ into @ into.T
        assert np.allclose(ours.numpy(), known, atol=1e-4), site


def test_unequal_widths_pair_singular_vectors_in_order(pair, tmp_path):
    hosts = pair(*BASES["bert turned"])
    wide = lively(tmp_path / "wide", "bert", 24, seed=3)
    context = PortContext(hosts.origin, wide, attach(load_host(wide), LORA).init_parameters(0),
                          PortSpec("svd_subspace", "svd_subspace", "stretch"), load_host)
    done = port(hosts.module, context)
    for place, ours in products(done.module).items():
        decomposed = [np.linalg.svd(weight_of(load_host(host), Space(*place, "out")).double().numpy(),
                                    full_matrices=False) for host in (hosts.origin, wide)]
        count = min(next(k for k in range(1, 99) if (s[:k]**2).sum() >= 0.8 * (s**2).sum())
                    for _, s, _ in decomposed)
        signs = [np.sign(v[np.arange(len(v)), np.abs(v).argmax(1)]) for _, _, v in decomposed]
        (u_o, v_o), (u_r, v_r) = (((u * sign)[:, :count], (v.T * sign)[:, :count])
                                  for (u, _, v), sign in zip(decomposed, signs, strict=True))
        known = u_r @ u_o.T @ products(hosts.module)[place].numpy() @ v_o @ v_r.T
        assert np.allclose(ours.numpy(), known, atol=1e-4), place


@pytest.mark.parametrize("method", ["adapter", "prefix", "compacter"])
def test_what_stands_beside_no_matrix_is_refused_by_name(mount, method):
    source = mount(method, "bert", 16, 1, 2)
    context = PortContext(source.host.spec, source.host.spec, source.init_parameters(2),
                          PortSpec("svd_subspace", "svd_subspace", "stretch"), load_host)
    with pytest.raises(UserError, match=r"(encoder|shared)\.0\.\w+\.\w+ stands beside no matrix of the host"):
        port(noisy(source, 1), context)


@pytest.mark.parametrize("energy", [0, 1.5, "most"])
def test_energy_is_a_share(pair, energy):
    with pytest.raises(UserError, match="options.energy must be a share in"):
        pair(*PERMUTED["llama"]).port("svd_subspace", energy=energy)


# ---- random


def drawn(source, target, module, seed=0, layer_map="stretch"):
    return port(module, PortContext(source.host.spec, target.host.spec, target.init_parameters(2),
                                    PortSpec("random", "random", layer_map), seed=seed))


@pytest.mark.parametrize("method", METHODS)
def test_noise_has_the_modules_norms_and_nothing_else_of_it(mount, method):
    source, target = mount(method, "t5", 32, 2, 4), mount(method, "t5", 48, 3, 6)
    module = noisy(source, 1)
    done = drawn(source, target, module)
    assert set(done.report.tensors.values()) == {"drawn"} and done.report.notes == [NOTE]
    layers = done.report.layer_map
    sizes = {slot: module.tensors[slot._replace(layer=layers[slot.stack][slot.layer][0])].norm()
             for slot in done.module.tensors}
    for slot, tensor in done.module.tensors.items():
        if not slot.role.startswith("B"):
            assert float(tensor.norm()) == pytest.approx(float(sizes[slot]), rel=1e-4), slot
    for (stack, layer, site), product in products(done.module).items():
        wanted = products(module)[stack, layers[stack][layer][0], site]
        assert float(product.norm()) == pytest.approx(float(wanted.norm()), rel=1e-4)
    here = drawn(source, source, module).module
    ours, theirs = (torch.cat([one.tensors[slot].flatten() for slot in module.tensors])
                    for one in (here, module))
    assert abs(float(torch.nn.functional.cosine_similarity(ours, theirs, 0))) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_that_of_its_seed(mount, method):
    source = mount(method, "t5", 32, 2, 4)
    module = noisy(source, 1)
    one, again, other = (drawn(source, source, module, seed).module for seed in (0, 0, 1))
    assert equal(one, again) and all(not torch.equal(one.tensors[slot], other.tensors[slot])
                                     for slot in module.tensors)
    of_layers = [tensor for slot, tensor in one.tensors.items()
                 if slot.role in ("A", "down_weight", "prefix_key")]
    assert all(not torch.equal(a, b) for a in of_layers for b in of_layers if a is not b)


def test_noise_for_several_layers_has_the_norm_of_their_average(mount):
    source, target = mount("lora", "bert", 32, 4, 4), mount("lora", "bert", 32, 2, 4)
    module = noisy(source, 1)
    found = products(drawn(source, target, module, layer_map="average").module)
    for (stack, layer, site), product in found.items():
        both = [{slot.role: tensor for slot, tensor in module.tensors.items()
                 if slot[:3] == (stack, one, site)} for one in (2 * layer, 2 * layer + 1)]
        mean = average_layers(both)
        wanted = torch.cat([mean[role].flatten(0, -2) for role in sorted(mean) if role[0] == "B"]) @ mean[
            "A"].flatten(1)
        assert float(product.norm()) == pytest.approx(float(wanted.norm()), rel=1e-4)


def test_noise_for_singular_values_is_in_the_product(pair):
    hosts = pair(*PERMUTED["bert"])
    source = attach(load_host(hosts.origin), MethodSpec("adalora", "peft", *KINDS["adalora"], 1e-3))
    module = noisy(source, 1)
    done = drawn(source, source, module).module
    for slot, ones in done.tensors.items():
        if slot.role == "E":
            a, b, e = (module.tensors[slot._replace(role=role)].double() for role in "ABE")
            wanted = b.flatten(0, -2) @ (e * a.flatten(1))
            ours = (done.tensors[slot._replace(role="B")].flatten(0, -2)
                    @ done.tensors[slot._replace(role="A")].flatten(1))
            assert (ones == 1).all() and float(ours.norm()) == pytest.approx(float(wanted.norm()), rel=1e-4)


@pytest.mark.parametrize("method", ["ia3", "dora", "ln"])
def test_noise_in_place_of_the_hosts_numbers_is_refused(pair, method):
    hosts = pair(*PERMUTED["bert"])
    source = attach(load_host(hosts.origin), MethodSpec(method, "peft", *KINDS[method], 1e-3))
    with pytest.raises(UserError, match="cannot port .* noise would undo the host"):
        drawn(source, source, noisy(source, 1))
