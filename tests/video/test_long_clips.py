"""Hours in little memory: scored, smoothed, its events found, its timeline drawn, and gone on with."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'vlad-ad[video]'")

import clips
import numpy as np

MOST = 60  # MB that an hour may take beyond the first minute; 200 were asked


@pytest.mark.slow
def test_an_hour_is_scored_and_gone_on_with_in_little_memory(small_folder, tmp_path):
    ground = np.full((96, 128, 3), 60, np.uint8)
    lit = np.where(np.arange(96)[:, None, None] < 40, 200, ground).astype(np.uint8)
    clips.write(tmp_path / "hour.mp4", [lit if 600 <= k // 2 < 3000 else ground for k in range(7200)], fps=2)
    script = textwrap.dedent(
        f"""
        import resource, sys
        import numpy as np
        sys.path.insert(0, "tests")
        from small_sets import brightness
        from vlad import Encoder
        from vlad.video.scoring import score_video
        taken = []
        def told(line, done, total):
            if done in (120, 7200):
                taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            if done == 7100 and sys.argv[1] == "killed":
                sys.exit()
        detector = brightness(Encoder.load("local-dir:{small_folder}"))
        dark, lit = detector.predict([np.full((96, 128, 3), grey, np.uint8) for grey in (60, 200)])
        how = dict(threshold=(dark.score + lit.score) / 2, progress=told, resume=sys.argv[1] == "resumed")
        done = score_video(detector, "{tmp_path}/hour.mp4", "{tmp_path}/out", **how)
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(done.frames, done.skipped, len(done.events), *taken)
        """
    )

    def run(word):
        done = subprocess.run([sys.executable, "-c", script, word], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return [float(value) for value in done.stdout.split()]

    run("killed")
    frames, skipped, events, *taken = run("resumed")
    assert frames + skipped == 7200 and skipped >= 7000 and events == 1
    assert taken[-1] - taken[0] < MOST, taken
