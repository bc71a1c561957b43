"""A replica with a real model: what it serves, refuses and says, without Ray and HTTP."""

import asyncio
import dataclasses
import math
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import builders
import hostile
import pytest

from raystyle import adapters, generation, models, tokens
from raystyle.config import ServeConfig
from raystyle.errors import ModelError
from raystyle.generation import Sampling
from raystyle.serving import replica as module
from raystyle.serving.catalogue import MAX_AGE_S
from raystyle.serving.contract import LEAST_EFFECT, Delta, Generation, Message, Started, Tokens
from raystyle.serving.errors import RequestError
from raystyle.serving.replica import Replica

PROMPT = "今日天气阴沉，"


@pytest.fixture
def folder(tiny_model, tmp_path):
    """Two good adapters, and room for others."""
    for number, name in enumerate(["first", "second"]):
        hostile.write_adapter(tmp_path / "adapters" / name, tiny_model, seed=number + 1)
    return tmp_path / "adapters"


@pytest.fixture(autouse=True)
def nothing_lingers(monkeypatch):
    monkeypatch.setattr(module, "NAMELESS_S", 0.0)


@asynccontextmanager
async def started(tiny_model, folder, **settings):
    # Nothing is looked at but when a test says so.
    given = {"max_length": 128, "max_batch_size": 4, "refresh_s": 3600.0, "use_gpu": False} | settings
    config = ServeConfig(model_name_or_path=str(tiny_model), adapters_path=(str(folder),), **given)
    replica = await Replica.start(config)
    try:
        yield replica
    finally:
        await replica.close()


def sampling(**more) -> Sampling:
    return Sampling(**({"max_new_tokens": 12, "temperature": 0.9, "seed": 3} | more))


async def collect(replica, generation_):
    """Its texts, what it began with, and all deltas."""
    events = [event async for found in replica.generate(generation_) for event in found]
    deltas = [event for event in events if isinstance(event, Delta)]
    texts = ["".join(d.text for d in deltas if d.choice == n) for n in range(len(generation_.samplings))]
    assert isinstance(events[0], Started) and events.count(events[0]) == 1
    return texts, events[0], deltas


def digests(listing):
    return {card.name: card.digest for card in listing.cards if not card.refused}


def test_base_and_adapters_in_one_batch_say_what_they_say_alone(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            held = digests(await replica.listing())
            asked = [
                Generation(
                    f"g{n}", PROMPT[: 2 + n % 5], (sampling(seed=n), sampling(seed=n, temperature=0)), held[name]
                )
                for n, name in enumerate(["base", "first", "second"] * 4)
            ]
            together = await asyncio.gather(*(collect(replica, each) for each in asked))
            alone = [await collect(replica, each) for each in asked]
            assert [texts for texts, *_ in together] == [texts for texts, *_ in alone]
            by_adapter = {name: alone[n][0] for n, name in enumerate(["base", "first", "second"])}
            assert len({tuple(texts) for texts in by_adapter.values()}) == 3

    asyncio.run(main())


def test_its_texts_are_generations(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            return (await collect(replica, Generation("g", PROMPT, (sampling(), sampling(seed=4)))))[0]

    texts = asyncio.run(main())
    model = models.load_base(str(tiny_model), dtype="auto").eval()
    expected = generation.generate(
        model, tokens.load_tokenizer(str(tiny_model)), [PROMPT] * 2, [sampling(), sampling(seed=4)]
    )
    assert texts == [completion.text for completion in expected]


def test_a_continuation_is_what_it_is_behind_its_prompt(tiny_model, folder, monkeypatch):
    async def the_the(row):
        yield Tokens((1, 1), finish_reason="stop")

    async def main():
        async with started(tiny_model, folder) as replica:
            monkeypatch.setattr(replica.engine, "generate", the_the)
            replica.tokenizer = builders.metaspace_tokenizer()
            return (await collect(replica, Generation("g", "气", (sampling(),))))[0]

    assert asyncio.run(main()) == [" the the"]


def test_an_adapter_that_moves_nothing_is_refused_when_it_is_tried(tiny_model, folder):
    """Its B is not zero, so only the comparison with the base can tell."""
    hostile.write_adapter(folder / "weak", tiny_model, seed=9)
    hostile.change_weights(folder / "weak", lambda t: [v.mul_(1e-12) for n, v in t.items() if "lora_B" in n])

    async def main():
        async with started(tiny_model, folder) as replica:
            return await replica.listing(), dict(replica.effects)

    listing, effects = asyncio.run(main())
    refused = {card.name: card.refused for card in listing.cards if card.refused}
    assert list(refused) == ["weak"] and "changes nothing" in refused["weak"]
    assert set(effects) == set(digests(listing).values()) - {None}
    assert all(LEAST_EFFECT < card.effect < math.inf for card in listing.cards if card.effect is not None)


def test_one_that_makes_the_model_overflow_is_refused_when_it_is_tried(tiny_model, folder):
    hostile.write_adapter(folder / "wild", tiny_model, seed=9)
    hostile.change_weights(folder / "wild", lambda t: [v.fill_(1e38) for v in t.values()])

    async def main():
        async with started(tiny_model, folder) as replica:
            texts, *_ = await collect(replica, Generation("g", PROMPT, (sampling(),)))
            return await replica.listing(), texts

    listing, texts = asyncio.run(main())
    assert ["not finite" in card.refused for card in listing.cards if card.refused] == [True]
    assert texts[0], "the base goes on"


def test_a_request_keeps_the_adapter_it_was_given_while_its_name_moves_on(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            old = digests(await replica.listing())["first"]
            asked = Generation("g", PROMPT, (sampling(max_new_tokens=100),), old)
            expected, *_ = await collect(replica, asked)
            running = replica.generate(asked)
            pieces = [event.text for event in await anext(running) if isinstance(event, Delta)]
            hostile.write_adapter(folder / "first", tiny_model, seed=7)
            new = digests(await replica.refresh())["first"]
            assert new != old and old in replica.effects
            pieces += [event.text async for found in running for event in found if isinstance(event, Delta)]
            assert "".join(pieces) == expected[0]
            await replica.refresh()
            assert old not in replica.effects and not (Path(replica.scratch.path) / old).exists()
            with pytest.raises(RequestError) as error:
                await collect(replica, asked)
            assert error.value.code == "unavailable"
            texts, *_ = await collect(replica, Generation("g", PROMPT, asked.samplings, new))
            assert texts != expected

    asyncio.run(main())


def test_a_digest_that_another_copy_found_first_is_looked_for(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            hostile.write_adapter(folder / "third", tiny_model, seed=8)
            digest = adapters.fingerprint(str(folder / "third"))
            texts, *_ = await collect(replica, Generation("g", PROMPT, (sampling(),), digest))
            assert texts[0] and digest in replica.effects

    asyncio.run(main())


def test_one_that_is_gone_is_unloaded(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            shutil.rmtree(folder / "second")
            assert set(digests(await replica.refresh())) == {"base", "first"}
            assert len(replica.effects) == 2, "who has just seen it in a listing may still ask for it"
            await replica.refresh()
            assert len(replica.effects) == 1 and len(replica.engine.lora.ranks) == 1

    asyncio.run(main())


@pytest.mark.parametrize("fails", ["nothing", "unloading"])
def test_a_copy_that_somebody_else_removed_holds_up_nothing(tiny_model, folder, monkeypatch, fails):
    async def main():
        async with started(tiny_model, folder) as replica:
            shutil.rmtree(replica.scratch.path)
            shutil.rmtree(folder / "second")
            await replica.refresh()
            if fails == "unloading":
                monkeypatch.setattr(replica.engine, "unload", lambda digest: 1 / 0)
            hostile.write_adapter(folder / "third", tiny_model, seed=8)
            assert set(digests(await replica.refresh())) == {"base", "first", "third"}

    asyncio.run(main())


def test_a_name_that_two_looks_ago_meant_it_can_still_be_answered(tiny_model, folder, monkeypatch):
    """A listing is kept for a moment, and looks may come one right after the other."""
    monkeypatch.setattr(module, "NAMELESS_S", MAX_AGE_S + 1)

    async def main():
        async with started(tiny_model, folder) as replica:
            old = digests(await replica.listing())["first"]
            hostile.write_adapter(folder / "first", tiny_model, seed=7)
            for _ in range(3):
                assert digests(await replica.refresh())["first"] != old
            await collect(replica, Generation("g", PROMPT, (sampling(),), old))

    asyncio.run(main())


def test_requests_for_what_is_not_here_share_a_look(tiny_model, folder, monkeypatch):
    async def main():
        async with started(tiny_model, folder) as replica:
            look, looks = replica.registry.look, []
            monkeypatch.setattr(replica.registry, "look", lambda: looks.append(1) or look())
            asked = [collect(replica, Generation(f"g{n}", PROMPT, (sampling(),), "d" * 64)) for n in range(8)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert {error.code for error in found} == {"unavailable"} and 1 <= len(looks) <= 2
            hostile.write_adapter(folder / "third", tiny_model, seed=8)
            first = asyncio.create_task(replica.refresh())
            while not replica._looking.locked():
                await asyncio.sleep(0)
            looks.clear()
            await asyncio.gather(first, *(replica.refresh() for _ in range(8)))
            assert len(looks) <= 2 and len(digests(await replica.listing())) == 4

    asyncio.run(main())


@pytest.mark.parametrize("how", ["fails", "is given up"])
def test_no_canary_runs_on_an_adapter_that_is_unloaded(tiny_model, folder, monkeypatch, how):
    async def main():
        async with started(tiny_model, folder) as replica:
            hostile.write_adapter(folder / "third", tiny_model, seed=8)
            canary, unload, running, left = replica._canary, replica.engine.unload, set(), []

            async def followed(adapter):
                running.add(adapter)
                try:
                    if adapter is None and how == "fails":
                        await asyncio.sleep(0)
                        raise ModelError("no")
                    await asyncio.sleep(3600)
                finally:
                    running.discard(adapter)

            async def unloaded(digest):
                left.append(set(running))
                await unload(digest)

            monkeypatch.setattr(replica, "_canary", followed)
            monkeypatch.setattr(replica.engine, "unload", unloaded)
            if how == "fails":
                refused = [card.refused for card in (await replica.refresh()).cards if card.refused]
                assert refused == ["no"] and left == [set()]
            else:
                asked = asyncio.create_task(replica.refresh())
                while len(running) < 2:
                    await asyncio.sleep(0.01)
                monkeypatch.setattr(replica, "_canary", canary)
                await replica.close()
                assert left == [set()] and not replica._looks and not Path(replica.scratch.path).exists()
                with pytest.raises(asyncio.CancelledError):
                    await asked

    asyncio.run(main())


def test_stop_strings_end_a_choice_and_free_its_row(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            [whole], *_ = await collect(replica, Generation("g", PROMPT, (sampling(max_new_tokens=60),)))
            stop = whole[5]
            found, _, deltas = await collect(
                replica, Generation("g", PROMPT, (sampling(max_new_tokens=60),), stop=(stop,))
            )
            assert found == [whole[: whole.index(stop)]]
            assert deltas[-1].finish_reason == "stop"
            await asyncio.sleep(0.2)
            assert replica.engine.depth() == (0, 0)

    asyncio.run(main())


def test_what_a_stop_string_cuts_off_is_not_counted_however_much_comes_at_once(tiny_model, folder, monkeypatch):
    async def main():
        async with started(tiny_model, folder) as replica:
            asked = Generation("g", PROMPT, (sampling(max_new_tokens=40),), logprobs=1)
            [whole], *_ = await collect(replica, asked)
            asked = dataclasses.replace(asked, stop=(whole[5],))
            *_, deltas = await collect(replica, asked)
            generate = replica.engine.generate

            async def at_once(row):
                pieces = [tokens async for tokens in generate(row)]
                yield Tokens(
                    tuple(token for piece in pieces for token in piece.ids),
                    tuple(scored for piece in pieces for scored in piece.scored),
                    finish_reason=pieces[-1].finish_reason,
                )

            monkeypatch.setattr(replica.engine, "generate", at_once)
            *_, [one] = await collect(replica, asked)
            assert one.tokens == len(one.logprobs) == sum(delta.tokens for delta in deltas) < 40
            assert one.logprobs == tuple(scored for delta in deltas for scored in delta.logprobs)
            assert one.finish_reason == deltas[-1].finish_reason == "stop"

    asyncio.run(main())


def test_echo_gives_the_prompt_and_its_log_probabilities(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            asked = Generation("g", PROMPT, (sampling(max_new_tokens=3, temperature=0),), logprobs=2, echo=True)
            return await collect(replica, asked)

    [text], began, deltas = asyncio.run(main())
    assert text.startswith(PROMPT)
    logprobs = [item for delta in deltas for item in delta.logprobs]
    assert len(logprobs) == began.prompt_tokens + 3 == sum(d.tokens for d in deltas) + began.prompt_tokens
    assert logprobs[0].logprob is None and all(item.logprob <= 0 and len(item.top) == 2 for item in logprobs[1:])
    assert b"".join(item.bytes for item in logprobs).decode("utf-8", "replace").startswith(PROMPT)


@pytest.mark.parametrize(("new", "message"), [(200, "context_length_exceeded: the prompt has")])
def test_more_than_fits_is_refused(tiny_model, folder, new, message):
    async def main():
        async with started(tiny_model, folder) as replica:
            with pytest.raises(RequestError, match=message) as error:
                await collect(replica, Generation("g", PROMPT, (sampling(max_new_tokens=new),)))
            assert error.value.code == "context_length_exceeded"
            whole = Generation("g", PROMPT, (sampling(max_new_tokens=-1),))
            _, began, deltas = await collect(replica, whole)
            assert began.prompt_tokens + sum(delta.tokens for delta in deltas) <= 128

    asyncio.run(main())


def test_ids_outside_the_vocabulary_are_refused_before_the_model_sees_them(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            for ids in [(10**6,), (-1,)]:
                with pytest.raises(RequestError) as error:
                    await collect(replica, Generation("g", ids, (sampling(),)))
                assert error.value.code == "invalid_value"
            await collect(replica, Generation("g", (5, 6), (sampling(),)))

    asyncio.run(main())


def test_chats_need_a_template_and_go_through_it(tiny_model, folder):
    chat = (Message("user", "日"), Message("assistant", "月"), Message("user", "天"))

    async def main():
        async with started(tiny_model, folder) as replica:
            assert not (await replica.listing()).has_chat_template
            with pytest.raises(RequestError, match="no chat template"):
                await collect(replica, Generation("g", chat, (sampling(),)))
            replica.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}：{{ m.content }}。{% endfor %}"
            texts, *_ = await collect(replica, Generation("g", chat, (sampling(),)))
            plain = replica.tokenizer("user：日。assistant：月。user：天。", add_special_tokens=False)["input_ids"]
            same, *_ = await collect(replica, Generation("g", tuple(plain), (sampling(),)))
            assert texts == same
            replica.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
            with pytest.raises(RequestError, match="roles must alternate"):
                await collect(replica, Generation("g", chat, (sampling(),)))

    asyncio.run(main())


def test_a_reader_that_leaves_frees_all_rows_and_its_adapter(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            digest = digests(await replica.listing())["first"]
            running = replica.generate(Generation("g", PROMPT, (sampling(max_new_tokens=100),) * 6, digest))
            await anext(running)
            assert replica.engine.depth() != (0, 0)
            await running.aclose()
            await asyncio.sleep(0.3)
            assert replica.engine.depth() == (0, 0)
            assert not replica.registry._users

    asyncio.run(main())


def test_a_fault_of_the_model_ends_what_runs_and_nothing_else(tiny_model, folder, monkeypatch):
    async def main():
        async with started(tiny_model, folder) as replica:
            decoder = replica.engine.decoder
            monkeypatch.setattr(decoder, "_forward", lambda *_: 1 / 0)
            with pytest.raises(RequestError) as error:
                await collect(replica, Generation("g", PROMPT, (sampling(),)))
            assert error.value.code == "internal_error" and "division" not in str(error.value)
            monkeypatch.undo()
            await collect(replica, Generation("g", PROMPT, (sampling(),)))
            replica.check()

    asyncio.run(main())


def test_a_passing_failure_refuses_nothing_and_holds_up_no_other(tiny_model, folder, monkeypatch):
    async def main():
        async with started(tiny_model, folder) as replica:
            for number, name in enumerate(["third", "fourth"]):
                hostile.write_adapter(folder / name, tiny_model, seed=20 + number)
            load, failed = replica.engine.load, []

            async def fails_once(digest, directory):
                if not failed:
                    failed.append(digest)
                    raise MemoryError
                await load(digest, directory)

            monkeypatch.setattr(replica.engine, "load", fails_once)
            monkeypatch.setattr("raystyle.serving.registry.RETRY_S", 3600.0)
            for _ in range(2):
                listing = await replica.refresh()
                [refused] = [card for card in listing.cards if card.refused]
                assert len(digests(listing)) == 4 and "could not be tried yet" in refused.refused
            replica.registry._put_off = {failed[0]: (1, 0.0)}
            assert len(digests(await replica.refresh())) == 5

    asyncio.run(main())


def test_a_look_goes_on_when_nobody_waits_for_it(tiny_model, folder):
    async def main():
        async with started(tiny_model, folder) as replica:
            hostile.write_adapter(folder / "third", tiny_model, seed=8)
            asked = asyncio.create_task(replica.refresh())
            await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(*replica._looks)
            assert len(digests(await replica.listing())) == 4
            assert set(replica.engine.lora.ranks) == set(replica.effects)

    asyncio.run(main())


def test_ends_are_those_of_the_tokenizer_that_is_named(tiny_model, tokenizer_dir, tmp_path):
    """A base that comes without one."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base, ignore=shutil.ignore_patterns("tokenizer*"))

    async def main():
        config = ServeConfig(model_name_or_path=str(base), tokenizer_name_or_path=tokenizer_dir, use_gpu=False)
        replica = await Replica.start(config)
        try:
            assert tokens.load_tokenizer(tokenizer_dir).eos_token_id in replica.engine.decoder.ends
        finally:
            await replica.close()

    asyncio.run(main())


def test_nothing_is_left_behind_where_the_start_fails(tiny_model, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("raystyle.serving.replica._engine", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Replica.start(ServeConfig(model_name_or_path=str(tiny_model), adapters_path=(str(folder),))))
    assert not list(tmp_path.glob("raystyle-serve-*"))


def test_a_model_that_fails_again_and_again_is_not_healthy(tiny_model, folder, monkeypatch):
    async def main():
        async with started(tiny_model, folder) as replica:
            monkeypatch.setattr(replica.engine.decoder, "_forward", lambda *_: 1 / 0)
            for _ in range(3):
                replica.check()
                with pytest.raises(RequestError):
                    await collect(replica, Generation("g", PROMPT, (sampling(),)))
            with pytest.raises(RuntimeError, match="3 times in a row"):
                replica.check()

    asyncio.run(main())


def test_a_row_that_comes_to_nothing_says_whose_fault_it_is(tiny_model, folder, monkeypatch):
    async def main():
        async with started(tiny_model, folder) as replica:
            digest = digests(await replica.listing())["first"]
            decoder = replica.engine.decoder
            forward = decoder._forward
            monkeypatch.setattr(decoder, "_forward", lambda *given: forward(*given) * float("nan"))
            for scale, code in ((1.5, "invalid_value"), (1.0, "internal_error")):
                with pytest.raises(RequestError, match="not finite") as error:
                    await collect(replica, Generation("g", PROMPT, (sampling(),), digest, scale))
                assert error.value.code == code
            replica.check()

    asyncio.run(main())
