"""Jobs that fail permanently: each is kept once, and can be enqueued again."""

from pathlib import Path

from .harness import (
    PROGRAM,
    Server,
    Service,
    dead,
    enqueue,
    finish,
    free_port,
    stored_job,
    supervised,
    until,
)


def test_every_way_to_die_is_kept_once(skeleton: Path, tmp_path: Path) -> None:
    settings = {"JOB_LEASE": 1, "MAX_ATTEMPTS": 3}
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, **settings) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()

        assert dead(api) == {}
        own = {name: enqueue(api, name, {"key": name})[0] for name in ("fail", "hang")}
        for name, value in (("unknown", stored_job(f="unknown")), ("undecodable", b"\xff")):
            redis.set(f"arq:job:{name}", value)
            redis.zadd("my-service", {name: 1})
        with supervised(service):
            names = {*own.values(), "unknown", "undecodable"}
            until(lambda: dead(api).keys() == names, f"{own}: {dead(api)}")
            # This one takes with it what runs beside it, so it comes alone.
            [own["crash"]] = enqueue(api, "crash", {"key": "crash"})
            names.add(own["crash"])
            until(lambda: dead(api).keys() == names, f"{own}: {dead(api)}")
            until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
            first = dead(api)
            assert first.keys() == names
            failed = first[own["fail"]]
            assert failed["error"] == "RuntimeError: broken"
            assert "in fail" in failed["traceback"]
            assert (failed["function"], failed["attempts"]) == ("fail", 3)
            assert (failed["positional"], failed["arguments"]) == ([], {"key": "fail"})
            assert first[own["hang"]]["error"].startswith("JobTimeoutError")
            assert first[own["crash"]]["arguments"] == {"key": "crash"}
            assert first[own["crash"]]["attempts"] in {3, 4}
            assert first["unknown"]["function"] == "unknown"
            begun = {name: len(journal.notes("begin", name)) for name in own}
            assert begun == {"fail": 3, "hang": 1, "crash": 3}
            assert not journal.notes("end")

            # What was wrong is put right: those that can run do, the others end as before.
            service.journal.path.with_suffix(".cured").touch()
            for job_id in (*own.values(), "unknown"):
                answer = api.post(f"/dead/{job_id}/retry")
                assert (answer.status_code, answer.json()) == (202, {"job_id": job_id})
            # Nobody knows what this one was to do.
            assert api.post("/dead/undecodable/retry").status_code == 409
            for name, job_id in own.items():
                journal.wait("end", name)
                assert finish(api, job_id)["status"] == "complete"
            until(lambda: dead(api).keys() == {"unknown", "undecodable"}, f"{dead(api)}")

            assert api.delete("/dead/unknown").status_code == 204
            assert dead(api).keys() == {"undecodable"}
            for gone in ("unknown", own["fail"], "never-was"):
                assert api.delete(f"/dead/{gone}").status_code == 404
                assert api.post(f"/dead/{gone}/retry").status_code == 404

            [again] = enqueue(api, "hang", {"key": "again"})
            assert finish(api, again)["status"] == "complete"
            # What the API can, the shell can too.
            assert "undecodable" in service.run(PROGRAM, "jobs", "list")
            service.run(PROGRAM, "jobs", "delete", "undecodable")
            assert dead(api) == {}
        assert {name: len(journal.notes("end", name)) for name in own} == dict.fromkeys(own, 1)
