// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host

// The template that a VM could have started from is made in the background, by a process of its own: the pod may end
// before it is made. The process is the program coco beside the shim. The shim starts it, puts it back into the cgroup
// that the shim itself came from, and only then tells it what to make. From then on the process depends on nothing of
// the pod. Its VM runs in a cgroup of its own. Both are the first to go when the node is short of memory.
//
// Nobody waits for the process. It notes its error in the store, and the next VM of the kind logs it when it boots.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu/template"
	plan "github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
)

// MakerArgs are the arguments that make the program coco call Maker.
var MakerArgs = []string{"template", "background"}

const (
	makerName    = "coco"
	orderTimeout = 10 * time.Second
	maxOrder     = 2 << 20
)

// Outside starts processes that do not belong to this process's pod: in the cgroup where this process was when Outside
// was made.
type Outside struct {
	trees  []cgroups.Hierarchy
	home   cgroups.Membership
	unable error // why none can be started; nil: it can
}

// NewOutside remembers in which cgroup this process is, before it moves to that of its pod. On a host whose cgroups
// cannot be read no process can be started.
func NewOutside() (o Outside) {
	if o.trees, o.unable = cgroups.Hierarchies(); o.unable == nil {
		o.home, o.unable = cgroups.Self(o.trees)
	}
	return o
}

// maker starts processes that make templates of a configuration.
type maker struct {
	Outside
	exe    string // calls Maker when its arguments are MakerArgs
	config configs.Config
	log    *slog.Logger
}

// newMaker makes the one of a host. exe is the shim. A host where no process can be started gets no templates, and its
// VMs boot.
func newMaker(c configs.Config, exe string, log *slog.Logger) maker {
	m := maker{Outside: NewOutside(), exe: filepath.Join(filepath.Dir(exe), makerName), config: c, log: log}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m
}

// missing starts a process that makes the template of a VM, if one is wanted. The VM that lacks it goes on without.
func (m maker) missing(key string, spec hypervisor.VMSpec) {
	if err := Templates(m.config).Wanted(key); err != nil {
		m.log.Debug("no template is made", "template", key, "reason", err)
		return
	}
	shape := plan.Shape{VCPUs: spec.CPU.Count, MemoryMiB: spec.MemoryMiB}
	pid, err := m.Start(m.exe, MakerArgs, order{m.config, shape, key})
	if err != nil {
		m.log.Warn("no template is made", "template", key, "error", err)
		return
	}
	m.log.Info("a template is made in the background", "template", key, "pid", pid)
}

// Start starts a program that reads from its standard input what to do, as JSON. Nobody waits for it.
func (o Outside) Start(exe string, args []string, todo any) (pid int, err error) {
	if o.unable != nil {
		return 0, o.unable
	}
	text, err := json.Marshal(todo)
	if err != nil {
		return 0, fmt.Errorf("describe what to do: %w", err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := exec.Command(exe, args...) // it outlives this call
	cmd.Stdin, cmd.Dir, cmd.Env = in, "/", []string{"PATH=" + os.Getenv("PATH")}
	if name, ok := os.LookupEnv(configs.EnvFile); ok { // it finds the same configuration
		cmd.Env = append(cmd.Env, configs.EnvFile+"="+name)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = in.Close() // the child has its own
	if err != nil {
		return 0, fmt.Errorf("start %s in the background: %w", exe, err)
	}
	err = o.home.Return(o.trees, cmd.Process.Pid)
	if err == nil {
		err = errors.Join(out.SetWriteDeadline(time.Now().Add(orderTimeout)), write(out, text))
	}
	if err != nil {
		_ = cmd.Process.Kill() // may have ended by itself
		_ = cmd.Wait()         // its status says less than err
		return 0, fmt.Errorf("tell %s what to do: %w", exe, err)
	}
	pid = cmd.Process.Pid
	return pid, cmd.Process.Release() // a subreaper, or PID 1, collects it
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// Maker is the process that makes a template. It reads from in what to make. Its error is in the store's note too.
func Maker(ctx context.Context, in io.Reader) error {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	text, err := io.ReadAll(io.LimitReader(in, maxOrder))
	if err != nil {
		return fmt.Errorf("read what to make: %w", err)
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil { // a shim that was killed has written nothing
		return fmt.Errorf("read what to make: %w", err)
	}
	// It was started by a shim, which the kernel spares for long.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	_, _, err = makeTemplate(ctx, o, "", slog.New(slog.DiscardHandler))
	if errors.Is(err, template.ErrBusy) {
		return nil
	}
	return err
}

// EnoughMemory refuses to boot a VM that others would have to make room for.
func EnoughMemory(mib uint64) error {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "MemAvailable:" {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err == nil && n>>10 < 2*mib {
			err = fmt.Errorf("the host has %d MiB of memory available, less than twice the %d MiB of the VM: %w", n>>10, mib,
				errdefs.ErrResourceExhausted)
		}
		return err
	}
	return nil // a kernel that does not tell
}
