// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
)

// templates is a configuration whose pods start from templates, as by default, in a directory of its own.
func templates(t *testing.T) (config, dir string) {
	t.Helper()
	state, err := os.MkdirTemp("/run", "coco-t-") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	config = filepath.Join(t.TempDir(), "config.toml")
	// Pods with live files boot: the program twin comes as a copy.
	write(t, config, fmt.Sprintf("[runtime]\nstate_dir = %q\nbinds = \"read-only\"\n", state))
	return config, filepath.Join(state, "templates")
}

func coco(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Prefix(), "bin", "coco"), args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("coco %v: %v: %s", args, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// twinLines is how many values the program twin prints.
const twinLines = 9

// twins is a directory with the program twin.
func twins(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "twin"),
		"./tests/integration/testdata/twin")
	cmd.Dir, cmd.Env = testvm.RepoRoot(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build twin: %v\n%s", err, out)
	}
	return dir
}

// Pods that start from one template have nothing random in common. Several of them start at once, so that neither their
// clocks nor the host's load set them apart.
func TestPodsFromATemplateHaveNothingInCommon(t *testing.T) {
	const pods, atOnce = 20, 4
	d := daemon(t, primary)
	noLeaks(t)
	config, _ := templates(t)
	begun := time.Now()
	key := coco(t, "template", "build", "--config", config)
	t.Logf("template %.12s made in %v", key, time.Since(begun).Round(time.Millisecond))
	follow, err := d.Follow()
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	dir := twins(t)
	outs := make([]harness.Result, pods)
	var wg sync.WaitGroup
	turn := make(chan bool, atOnce)
	for pod := range pods {
		turn <- true
		wg.Go(func() {
			defer func() { <-turn }()
			outs[pod] = d.Ctr(t.Context(), "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config,
				"--cap-add", "CAP_NET_ADMIN", "--mount", "type=bind,src="+dir+",dst=/t,options=rbind:ro", harness.Image,
				newID(t), "/t/twin")
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for pod, r := range outs {
		lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
		if r.Err != nil || r.Code != 0 || len(lines) != twinLines {
			t.Fatalf("pod %d: exit %d, %v, %q: %s", pod, r.Code, r.Err, r.Stdout, r.Stderr)
		}
		for _, l := range lines {
			if other, ok := seen[l]; ok {
				t.Errorf("pods %d and %d have the same %s", other, pod, l)
			}
			seen[l] = pod
		}
	}
	t.Logf("%d pods, %d values", pods, len(seen))
	log, err := os.ReadFile(d.Log())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "VM starts from a template"); n < pods {
		t.Errorf("%d of %d pods started from the template", n, pods)
	}
	if got := coco(t, "template", "ls", "--config", config); !strings.Contains(got, key[:12]) {
		t.Errorf("coco template ls says %s", got)
	}
}

// made waits until the one template of a configuration can be used and its maker has ended.
func made(t *testing.T, config, dir string) (key string) {
	t.Helper()
	within(t, time.Minute, func() error {
		var list []struct{ Key, Fault string }
		if err := json.Unmarshal([]byte(coco(t, "template", "ls", "--config", config, "--json")), &list); err != nil {
			t.Fatal(err)
		}
		aside, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".template-*"))
		if len(list) != 1 || list[0].Fault != "" || len(aside) > 0 {
			return fmt.Errorf("templates %v, and a maker in %v", list, aside)
		}
		key = list[0].Key
		return nil
	})
	return key
}

// Without a template that can be used a pod boots, the log says why, and one is made. A damaged one is removed by the
// first that meets it, whose start fails by name.
func TestPodsWithoutAUsableTemplate(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	config, dir := templates(t)
	run := func(want string) {
		t.Helper()
		since := logOf(t, d)
		r := ctr(t, d, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image,
			newID(t), "true")
		if said := since() + r.Stderr; !strings.Contains(said, want) {
			t.Errorf("exit %d without %q: %s", r.Code, want, r.Stderr)
		}
	}
	run("there is none")
	key := made(t, config, dir)
	if again := coco(t, "template", "build", "--config", config); again != key {
		t.Errorf("built: %s, not %s, which was made in the background", again, key)
	}
	run("VM starts from a template")
	state := filepath.Join(dir, key, "state")
	if err := os.Truncate(state, 1000); err != nil {
		t.Fatal(err)
	}
	run("1000 bytes")
	within(t, time.Minute, func() error {
		if st, err := os.Stat(state); err != nil || st.Size() <= 1000 {
			return fmt.Errorf("it is not made again: %w", err)
		}
		return nil
	})
	if again := made(t, config, dir); again != key {
		t.Errorf("made again: %s, not %s", again, key)
	}
	f, err := os.OpenFile(state, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("not what was saved"), 40<<20); err != nil {
		t.Error(err)
	}
	_ = f.Close()
	run("the state has digest")
	run("there is none")
	made(t, config, dir)
	coco(t, "template", "rm", "--config", config, key[:8])
	run("there is none")
	made(t, config, dir)
}

// Several first starts of a kind make one template, which neither counts against their pods nor ends with them. A
// maker that is killed leaves nothing that stays, and a failure is not repeated for each pod.
func TestATemplateIsMadeAtTheFirstStart(t *testing.T) {
	const pods = 2
	d := daemon(t, primary)
	noLeaks(t)
	config, dir := templates(t)
	run := func() {
		id := newID(t)
		r := d.Ctr(t.Context(), "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image,
			id, "true")
		if r.Err != nil || r.Code != 0 {
			t.Errorf("pod %s: exit %d, %v: %s", id, r.Code, r.Err, r.Stderr)
		}
	}
	since := logOf(t, d)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(run) // whose maker is killed while its VM boots
	group := filepath.Join("/sys/fs/cgroup/memory", fmt.Sprintf("coco-template-%x", sha256Of(filepath.Dir(dir))))
	var maker int
	within(t, time.Minute, func() error {
		m := regexp.MustCompile(`made in the background.* pid=(\d+)`).FindStringSubmatch(since())
		if m == nil {
			return errors.New("no template is made")
		}
		maker, _ = strconv.Atoi(m[1])
		if procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs")); err != nil || len(procs) == 0 {
			return fmt.Errorf("its VM is not in cgroup %s: %w", group, err)
		}
		return nil
	})
	if maker <= 1 { // kill(2) would take it for a group
		t.Fatalf("the maker has pid %d", maker)
	}
	if err := syscall.Kill(maker, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	wg.Wait()
	since = logOf(t, d)
	for range pods {
		wg.Go(run)
	}
	wg.Wait()
	made(t, config, dir)
	if said := since(); strings.Count(said, "VM boots, not from a template") != pods {
		t.Errorf("the pods that started meanwhile: %s", said)
	}
	since = logOf(t, d)
	links := must(t, d, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image,
		newID(t), "ls", "/sys/class/net")
	if said := since(); !strings.Contains(said, "VM starts from a template") {
		t.Errorf("the pod after that: %s", said)
	}
	if links != "lo\n" { // the VM has an interface for a network that may come
		t.Errorf("a pod without network has the links %q", links)
	}
	if _, err := os.Stat(group); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup stays: %v", err)
	}
}

// A template that the file system has no room for is not made: the builder says so, pods boot, and nothing stays.
func TestTemplatesOnAFullFileSystem(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	config, dir := templates(t)
	state := filepath.Dir(dir)
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=400m,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, 0); err != nil {
			t.Error(err)
		}
	})
	program := filepath.Join(harness.Prefix(), "bin", "coco")
	cmd := exec.CommandContext(t.Context(), program, "template", "build", "--config", config)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, time.Minute, func() error {
		if found, _ := filepath.Glob(filepath.Join(dir, ".new-*/state")); len(found) == 0 {
			return errors.New("it has not begun")
		}
		return nil
	})
	filler, err := os.Create(filepath.Join(state, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	if err := unix.Fallocate(int(filler.Fd()), 0, 0, 380<<20); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "make template") {
		t.Errorf("the builder, whose file system was full while it wrote: %v: %s", err, said.String())
	}
	t.Log(strings.TrimSpace(said.String()))
	if out, err := exec.Command(cmd.Path, cmd.Args[1:]...).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "MiB free") {
		t.Errorf("the builder on a full file system: %v: %s", err, out)
	}
	since := logOf(t, d)
	must(t, d, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", config, harness.Image, newID(t),
		"true")
	if said := since(); !strings.Contains(said, "VM boots, not from a template") || !strings.Contains(said, "MiB free") {
		t.Errorf("a pod on a full file system: %s", said)
	}
	for _, pattern := range []string{".template-*", "user-*", "templates/.new-*", "templates/[0-9a-f]*"} {
		if left, _ := filepath.Glob(filepath.Join(state, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// A canary in the memory of one pod is in no other pod's, and in no template.
func TestTheMemoryOfAPodIsItsOwn(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	config, dir := templates(t)
	first := coco(t, "template", "build", "--config", config)
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails
	canary := hex.EncodeToString(random)
	with := func(args ...string) string {
		id := detached(t, d, harness.Runtime, append([]string{"--runtime-config-path", config}, args...)...)
		return id
	}
	since := logOf(t, d)
	own := with("--env", "CANARY="+canary, "--", "sleep", "1000")
	other := with("--", "sleep", "1000")
	if said := since(); strings.Count(said, "VM starts from a template") != 2 {
		t.Fatalf("not both pods started from the template: %s", said)
	}
	if n := inMemory(t, own, canary); n == 0 {
		t.Error("the canary is not in its own pod's memory: this test finds nothing")
	}
	if n := inMemory(t, other, canary); n > 0 {
		t.Errorf("the canary is %d times in another pod's memory", n)
	}
	coco(t, "template", "rm", "--config", config, first)
	second := coco(t, "template", "build", "--config", config)
	state, err := os.ReadFile(filepath.Join(dir, second, "state"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(state, []byte(contract.ParamTemplate)) {
		t.Error("the template has no command line: this test finds nothing")
	}
	if bytes.Contains(state, []byte(canary)) {
		t.Error("the canary is in a template")
	}
}

// inMemory counts a text in all memory of a pod's VMM.
func inMemory(t *testing.T, id, text string) (n int) {
	t.Helper()
	_, vmm, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	return inMemoryOf(t, vmm, text)
}

// inMemoryOf counts a text in all memory of a process.
func inMemoryOf(t *testing.T, pid int, text string) (n int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var begin, end int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &begin, &end, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		for ; begin < end; begin += int64(len(buf)) - int64(len(text)) {
			got, _ := mem.ReadAt(buf[:min(int64(len(buf)), end-begin)], begin) // guard pages cannot be read
			n += bytes.Count(buf[:got], []byte(text))
		}
	}
	return n
}

// sha256Of is how the name of a maker's cgroup ends.
func sha256Of(state string) []byte {
	sum := sha256.Sum256([]byte(state))
	return sum[:6]
}

// logOf returns what a daemon's log says from now on.
func logOf(t *testing.T, d *harness.Daemon) func() string {
	t.Helper()
	read := func() string {
		text, err := os.ReadFile(d.Log())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := len(read())
	return func() string { return read()[before:] }
}
