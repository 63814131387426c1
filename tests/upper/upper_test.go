// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package upper tests the way of a container's files from a guest to its engine with both sides of the real code: the
// agent's server reads the upper directory of an overlay, and the host's receiver merges the stream into another one.
package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	agent "github.com/coco-shim/coco/agent/upper"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
	host "github.com/coco-shim/coco/virtcontainers/upper"
)

var limits = host.Limits{Entries: 10_000, Bytes: 64 << 20, Size: 1 << 40}

// world is a container's layers: those of its image, the engine's upper directory and the guest's.
type world struct {
	t     *testing.T
	dir   string
	layer *host.Layer
	runs  int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testvm.Need(t, testvm.Root)
	dir, err := os.MkdirTemp("/var/tmp", "coco-upper-") // an overlay's upper directory cannot lie on an overlay
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, dir: dir}
	w.sh("mkdir -p lower/etc lower/home/a expected/fs expected/work engine/fs engine/work merged")
	w.sh("echo passwd >lower/etc/passwd; echo group >lower/etc/group; echo a >lower/home/a/f; echo b >lower/home/b")
	w.boot()
	return w
}

func (w *world) sh(script string) {
	w.t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = w.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// boot begins a run of the container: the guest has what the engine has as a layer, and nothing above it.
func (w *world) boot() {
	w.runs++
	w.sh(fmt.Sprintf("mkdir -p guest%d/fs guest%[1]d/work; cp -a engine/fs layer%[1]d", w.runs))
	w.layer = host.New(host.Dirs{
		Upper: filepath.Join(w.dir, "engine/fs"), Lower: []string{filepath.Join(w.dir, "lower")},
	})
}

// do runs a script in the container twice: in a guest, and as runc would have it, with the engine's directory mounted.
func (w *world) do(script string) {
	w.t.Helper()
	guest := fmt.Sprintf("lowerdir=layer%d:lower,upperdir=guest%[1]d/fs,workdir=guest%[1]d/work", w.runs)
	for _, opts := range []string{guest, "lowerdir=lower,upperdir=expected/fs,workdir=expected/work"} {
		w.in(opts, script)
	}
}

func (w *world) in(opts, script string) {
	w.t.Helper()
	w.sh(fmt.Sprintf("mount -t overlay overlay -o %s merged; trap 'umount merged' EXIT; ( cd merged; %s )", opts, script))
}

// bring brings the guest's files to the engine.
func (w *world) bring(most host.Limits) (host.Report, error) {
	w.t.Helper()
	c := w.stream(filepath.Join(w.dir, fmt.Sprintf("guest%d/fs", w.runs)))
	defer c.Close()
	return w.layer.Bring(c, most)
}

// stream is a stream of a new agent's, behind its greeting.
func (w *world) stream(dir string) net.Conn { return w.agent(dir)(contract.UpperStill) }

// agent serves a guest's upper directory. The function that it returns opens a stream.
func (w *world) agent(dir string) func(which int) net.Conn {
	w.t.Helper()
	l, err := net.Listen("unix", filepath.Join(w.t.TempDir(), "s"))
	if err != nil {
		w.t.Fatal(err)
	}
	s := agent.New(func(bool) (string, error) { return dir, nil })
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	w.t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			w.t.Error(err)
		}
	})
	return func(which int) net.Conn {
		w.t.Helper()
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			w.t.Fatal(err)
		}
		answer := make([]byte, 3)
		if _, err = fmt.Fprintf(c, "%s %d\n", contract.UpperWord, which); err == nil {
			_, err = io.ReadFull(c, answer)
		}
		if err != nil || string(answer) != "ok\n" {
			w.t.Fatalf("the agent answers %q, %v", answer, err)
		}
		return c
	}
}

// compare compares what the engine's overlay shows, and what lies in its upper directory, with what runc would have
// left.
func (w *world) compare(step string) {
	w.t.Helper()
	for _, dir := range []string{"expected", "engine"} {
		w.in(fmt.Sprintf("lowerdir=lower,upperdir=%s/fs,workdir=%[1]s/work", dir),
			fmt.Sprintf("%s . >../%s.list", listing, dir))
		w.sh(fmt.Sprintf("cd %s/fs; %s . >../../%s.raw", dir, listing, dir))
	}
	for _, kind := range []string{"list", "raw"} {
		want, got := w.lines("expected."+kind), w.lines("engine."+kind)
		if d := cmp.Diff(want, got); d != "" {
			w.t.Errorf("%s, %s (-runc +coco):\n%s", step, kind, d)
		}
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "engine/.coco-upper")); !errors.Is(err, fs.ErrNotExist) {
		w.t.Errorf("%s: the directory of the transfer is left: %v", step, err)
	}
}

// listing prints each file with type, mode, owner, size, links, time, sum and attributes. The overlay's marks are
// left out: opacity of a directory that no layer below has says nothing.
const listing = `LC_ALL=C python3 -c '
import os, sys, hashlib
for d, dirs, files in os.walk(b".", followlinks=False):
    for n in sorted([b"."] if d == b"." else []) + dirs + files:
        p = os.path.join(d, n); s = os.lstat(p); t = b""
        if os.path.islink(p): t = os.readlink(p)
        elif os.path.isfile(p): t = hashlib.sha256(open(p, "rb").read()).hexdigest()
        x = sorted((k, os.getxattr(p, k, follow_symlinks=False)) for k in os.listxattr(p, follow_symlinks=False)
                   if not k.startswith("trusted.overlay.") and k != "security.selinux")
        links = s.st_nlink if not os.path.isdir(p) else 0
        at = s.st_mtime_ns if s.st_mtime < 1.1e9 else "now"
        print(p, oct(s.st_mode), s.st_uid, s.st_gid, s.st_size if not os.path.isdir(p) else 0, links, at, t, x)
'`

func (w *world) lines(name string) []string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	sort.Strings(lines)
	return lines
}

const fill = `mkdir -p d/sub/deep; cd d; : >empty; echo hello >small; chown 7:8 small; echo z >zero; chmod 0 zero
head -c 3000000 /dev/zero | tr '\0' x >big; ln big sub/big2; ln big sub/deep/big3
truncate -s 64M sparse; printf tail | dd of=sparse bs=1 seek=40000000 conv=notrunc 2>/dev/null
ln -s ../etc/passwd rel; ln -s /nowhere abs; mkfifo pipe; echo x >suid; chmod 4755 suid
echo cap >capable; chmod 755 capable
printf x >"$(printf 'new\nline')"; printf x >"$(printf 'l\351tin')"; printf x >"$(printf %0255d 0)"
python3 -c 'import os; os.setxattr("small", "user.note", b"a\0b"); os.setxattr("sub", "user.empty", b"")
os.setxattr("capable", "security.capability", b"\1\0\0\2\0\4" + bytes(14))'
cd ..; rm etc/group; rm -r home/a; mkdir home/a; echo n >home/a/new; echo more >>etc/passwd; chown 5:6 home
find d etc home -exec touch -h -d '2001-02-03 04:05:06.7' {} ';'`

func TestWhatTheGuestHasIsWhatTheEngineGets(t *testing.T) {
	w := newWorld(t)
	w.do(fill)
	report, err := w.bring(limits)
	if err != nil || report.Entries < 20 || len(report.Skipped) > 0 {
		t.Fatalf("Bring() = %+v, %v", report, err)
	}
	w.compare("the first time")
	if n := blocks(t, filepath.Join(w.dir, "engine/fs/d/sparse")); n > 1<<20 {
		t.Errorf("a sparse file takes %d bytes", n)
	}
	// The container goes on, after a pause.
	w.do(`rm d/small d/rel; mv d/empty d/moved; echo >d/later; rm -r d/sub/deep; echo f >d/sub/deep; rm etc/passwd
touch -d @1000000000 d d/sub d/sub/deep d/later etc`)
	if _, err := w.bring(limits); err != nil {
		t.Fatal(err)
	}
	w.compare("the second time")
	// It is started again: what was brought is a layer of the guest now, and what the guest sends lies above it.
	w.boot()
	w.do(`rm d/moved d/later; rm -r home/a; mkdir -p d/x/y; echo y >d/x/y/z; echo again >d/suid; chmod 700 d; rm d/sub/deep
mkdir d/sub/deep; echo g >etc/group; rm d/big; rm -r d/x; echo file >d/x
touch -h -d @1000000001 d etc d/sub d/sub/deep d/x home`)
	if _, err := w.bring(limits); err != nil {
		t.Fatal(err)
	}
	if _, err := w.bring(limits); err != nil { // once more, as at an end after a pause
		t.Fatal(err)
	}
	// The guest has the engine's files in a layer, where names of one file are files of their own when it changes them.
	w.compare("started again")
}

// counted counts what is read from a stream.
type counted struct {
	from io.Reader
	n    int
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.from.Read(b)
	c.n += n
	return n, err
}

// While the container runs, a stream leaves out what the last one had: the engine's directory is complete nevertheless.
func TestOnlyChangesAreSentOfAContainerThatRuns(t *testing.T) {
	w := newWorld(t)
	open := w.agent(filepath.Join(w.dir, "guest1/fs"))
	bring := func(which int) int {
		t.Helper()
		if known := w.layer.Knows(); known != (which == contract.UpperChanges) {
			t.Fatalf("Knows() = %t before a stream of kind %d", known, which)
		}
		c := open(which)
		defer c.Close()
		in := counted{from: c}
		if _, err := w.layer.Bring(&in, limits); err != nil {
			t.Fatal(err)
		}
		return in.n
	}
	w.do(fill + "\nmkdir op; head -c 2000000 /dev/zero | tr '\\0' y >op/y; yes | head -c 1000000 >d/more\n" +
		"touch -d @1 d op op/y d/more")
	all := bring(contract.UpperAll)
	w.compare("everything")
	// A file is noted when it has been as it is for a second.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if n := bring(contract.UpperChanges); n < all-2_500_000 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("streams still have %d of %d bytes", n, all)
		}
	}
	w.compare("nothing changed")
	w.do(`echo longer >>d/more; rm d/small; mv d/moved d/x 2>/dev/null || mv d/zero d/x; rm -r home/a; mkdir d/new; mv op d/op
touch -d @1000000000 d/more d d/new home .`)
	bring(contract.UpperChanges)
	w.compare("changed")
	w.do(`mv d/op op; rm d/more; mkdir d/more; echo f >d/more/f; touch -d @1000000001 d/more/f d/more d op .`)
	bring(contract.UpperChanges)
	w.compare("moved back")
	c := open(contract.UpperChanges)
	if _, err := w.layer.Bring(io.LimitReader(c, 100), limits); err == nil {
		t.Error("a stream that broke off was taken")
	}
	_ = c.Close()
	w.do(`echo end >>d/more/f; touch -d @1000000002 d/more/f`)
	bring(contract.UpperAll)
	w.compare("after a failure")
}

func blocks(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestSocketsAndDevicesAreNamedAndLeftOut(t *testing.T) {
	w := newWorld(t)
	w.sh("mkdir guest1/fs/x; mknod guest1/fs/x/null c 1 3; mknod guest1/fs/disk b 8 0; echo kept >guest1/fs/f")
	l, err := net.Listen("unix", filepath.Join(w.dir, "guest1/fs/x/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	report, err := w.bring(limits)
	want := []string{`"disk" ("a device")`, `"x/null" ("a device")`, `"x/s" ("a socket")`}
	slices.Sort(report.Skipped)
	if d := cmp.Diff(want, report.Skipped); err != nil || d != "" {
		t.Errorf("Bring(): %v, left out (-want +got):\n%s", err, d)
	}
	w.sh("test -f engine/fs/f && test -d engine/fs/x && test ! -e engine/fs/disk && test ! -e engine/fs/x/null")
}

func TestWhatIsTooMuchLeavesTheEngineWhatItHad(t *testing.T) {
	for name, c := range map[string]struct {
		script, want string
		most         host.Limits
	}{
		"bytes": {"head -c 5000000 /dev/zero | tr '\\0' x >f", "more than 4000000 bytes", host.Limits{
			Entries: 10, Bytes: 4_000_000, Size: 1 << 30,
		}},
		"entries": {"touch 1 2 3 4 5 6 7 8 9 10", "more than 10 entries", host.Limits{Entries: 10, Bytes: 100, Size: 100}},
		"holes":   {"truncate -s 2T f", "are more than", limits},
		"depth":   {"mkdir -p $(printf 'd/%.0s' $(seq 450))", "more than 400 directories deep", limits},
		"redirect": {
			`mkdir d; python3 -c 'import os; os.setxattr("d", "trusted.overlay.redirect", b"/etc")'`, "redirect", limits,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.sh("echo old >engine/fs/old; cd guest1/fs; echo 1 >new; " + c.script)
			if _, err := w.bring(c.most); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Bring() = %v, want %q", err, c.want)
			}
			w.sh(`test "$(ls -A engine/fs)" = old; test ! -e engine/.coco-upper`)
		})
	}
}

// A merge that was interrupted at any moment is completed by the next start.
func TestAMergeThatWasInterruptedIsCompleted(t *testing.T) {
	w := newWorld(t)
	w.do(fill)
	if _, err := w.bring(limits); err != nil {
		t.Fatal(err)
	}
	// As if the shim had died before the first, and after some of the renames.
	w.sh("mkdir engine/.coco-upper engine/.coco-upper/trash engine/.coco-upper/ready; mv engine/fs/d engine/fs/home " +
		"engine/.coco-upper/ready; touch -r engine/fs engine/.coco-upper/ready; chmod 755 engine/.coco-upper/ready; " +
		"echo >engine/.coco-upper/trash/1")
	d := host.Dirs{Upper: filepath.Join(w.dir, "engine/fs"), Lower: []string{filepath.Join(w.dir, "lower")}}
	if err := host.Finish(d); err != nil {
		t.Fatal(err)
	}
	w.compare("completed")
	w.sh("mkdir -p engine/.coco-upper/new/d; echo half >engine/.coco-upper/new/d/f")
	if err := host.Finish(d); err != nil {
		t.Fatal(err)
	}
	w.compare("a transfer that was interrupted")
}
