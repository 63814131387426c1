// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/pod"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/standin"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/state"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/internal/wire"
	"github.com/coco-shim/coco/shim/bundle"
)

// maxSpec bounds config.json, as the shim does.
const maxSpec = 16 << 20

// newContainer are the options of create and run.
type newContainer struct {
	id, bundle, pidFile, console string
	preserve                     int
	noPivot, noKeyring           bool
	detach, keep                 bool
	foreground                   bool // the caller's own terminal is the container's
}

func (n *newContainer) flags(fs *flag.FlagSet) {
	fs.StringVar(&n.bundle, "bundle", "", "")
	fs.StringVar(&n.bundle, "b", "", "")
	fs.StringVar(&n.pidFile, "pid-file", "", "")
	fs.StringVar(&n.console, "console-socket", "", "")
	fs.IntVar(&n.preserve, "preserve-fds", 0, "")
	fs.BoolVar(&n.noPivot, "no-pivot", false, "")
	fs.BoolVar(&n.noKeyring, "no-new-keyring", false, "")
}

// complete checks the options. Those about the host's root directory and keyring hold anyway: a guest has neither.
func (n *newContainer) complete(fs *flag.FlagSet) error {
	n.id = fs.Arg(0)
	if err := openFiles(n.preserve); err != nil {
		return err
	}
	if n.bundle == "" {
		n.bundle = "."
	}
	dir, err := filepath.Abs(n.bundle)
	if err != nil {
		return fmt.Errorf("find the bundle: %w", err)
	}
	n.bundle = dir
	return privileged()
}

// openFiles refuses descriptors that a process shall inherit.
func openFiles(preserve int) error {
	if preserve > 0 {
		return fmt.Errorf("--preserve-fds %d: open files of the host do not reach a process in a VM: %w", preserve,
			errdefs.ErrInvalidArgument)
	}
	if n := os.Getenv("LISTEN_FDS"); n != "" && n != "0" {
		return fmt.Errorf("LISTEN_FDS=%s: sockets of the host do not reach a process in a VM: %w", n,
			errdefs.ErrInvalidArgument)
	}
	return nil
}

// privileged refuses to run for an unprivileged user.
func privileged() error {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return fmt.Errorf("find out who calls: %w", err)
	}
	if f := strings.Fields(string(ids)); os.Geteuid() != 0 || len(f) != 3 || f[0] != "0" || f[1] != "0" {
		return fmt.Errorf("rootless engines are not supported: a VM needs taps in the container's network, control groups "+
			"and a user of its own, for which the engine has to run as root, outside of user namespaces: %w",
			errdefs.ErrPermissionDenied)
	}
	return nil
}

func create(ctx context.Context, o options, args []string) (int, error) {
	var n newContainer
	fs := newFlags("create")
	n.flags(fs)
	if err := parse(fs, args, 1, 1); err != nil {
		return 0, err
	}
	if err := n.complete(fs); err != nil {
		return 0, err
	}
	_, err := n.create(ctx, o)
	return 0, err
}

// create makes the container and its stand-in. On an error nothing is left.
func (n *newContainer) create(ctx context.Context, o options) (_ *exec.Cmd, err error) {
	spec, err := readSpec(n.bundle)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", n.id, err)
	}
	terminal := spec.Process != nil && spec.Process.Terminal
	if err := checkTerminal(terminal, n.console, n.foreground); err != nil {
		return nil, err
	}
	unlock := func() {}
	defer func() { unlock() }() // the undoing included
	var u undo.Stack
	defer u.RunOnError(&err)
	dir, err := o.state().Claim(n.id)
	if err != nil {
		return nil, err
	}
	u.Push("remove directory", func(context.Context) error { return o.state().Remove(n.id) })
	if unlock, err = o.state().Lock(n.id); err != nil {
		unlock = func() {}
		return nil, err
	}
	role, err := bundle.RoleOf(n.id, spec.Annotations)
	if err != nil {
		return nil, err
	}
	if err := o.adapt(spec, n.bundle, n.id, role); err != nil {
		return nil, fmt.Errorf("create %s: %w", n.id, err)
	}
	if err := writeJSON(filepath.Join(dir, "config.json"), spec); err != nil {
		return nil, fmt.Errorf("create %s: %w", n.id, err)
	}
	c := state.Container{
		ID: n.id, Pod: role.PodID, Bundle: n.bundle, Rootfs: spec.Root.Path, Created: time.Now().UTC(),
		Annotations: spec.Annotations, UID: uint32(os.Getuid()), //nolint:gosec // a user id
	}
	if c.Address, err = o.startShim(ctx, dir, n.id, role, &u); err != nil {
		return nil, fmt.Errorf("create %s: %w", n.id, err)
	}
	p := standin.Process{
		Address: c.Address, ID: n.id, Dir: dir, Terminal: terminal, Console: n.console, Netns: netns(spec),
	}
	cmd, id, err := o.createTask(ctx, p, &u)
	if err != nil {
		return nil, err
	}
	c.StandIn = id
	if err := o.state().Save(c); err != nil {
		return nil, err
	}
	return cmd, writePID(n.pidFile, id.PID)
}

// startShim starts the shim, with a log in the container's directory if that is asked for.
func (o options) startShim(ctx context.Context, dir, id string, role bundle.Role, u *undo.Stack) (string, error) {
	if o.debug {
		if err := os.WriteFile(filepath.Join(dir, "log"), nil, 0o600); err != nil {
			return "", fmt.Errorf("make the shim's log: %w", err)
		}
	}
	address, err := o.shim().Start(ctx, dir, id)
	if err == nil && role.PodID == id {
		u.Push("end shim", func(ctx context.Context) error { return o.shim().Delete(ctx, dir, id) })
	}
	return address, err
}

// createTask has the shim create the container, and starts its stand-in.
func (o options) createTask(ctx context.Context, p standin.Process, u *undo.Stack) (*exec.Cmd, bundle.Process, error) {
	places, err := p.Places()
	if err != nil {
		return nil, bundle.Process{}, err
	}
	shim, err := pod.Dial(p.Address)
	if err != nil {
		return nil, bundle.Process{}, err
	}
	defer func() { _ = shim.Close() }() // all calls are answered
	_, err = shim.Create(ctx, &api.CreateTaskRequest{
		Id: p.ID, Bundle: p.Dir, Terminal: p.Terminal, Options: o.runtimeOptions(),
		Stdin: places.Stdin, Stdout: places.Stdout, Stderr: places.Stderr,
	})
	if err != nil {
		return nil, bundle.Process{}, err
	}
	u.Push("delete container", func(ctx context.Context) error {
		shim, err := pod.Dial(p.Address)
		if err != nil {
			return err
		}
		defer func() { _ = shim.Close() }() // all calls are answered
		return shim.Do(ctx, "Delete", &api.DeleteRequest{Id: p.ID})
	})
	cmd, id, err := standin.Start(p)
	return cmd, id, err
}

// runtimeOptions name the configuration file: runtimeoptions.v1.Options, whose second field is its path.
func (o options) runtimeOptions() *anypb.Any {
	if o.config == "" {
		return nil
	}
	var m wire.Message
	m.Text(2, o.config)
	return &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: m}
}

func checkTerminal(terminal bool, console string, foreground bool) error {
	switch {
	case terminal && console == "" && !foreground:
		return fmt.Errorf("cannot allocate tty if coco-oci will detach without setting console socket: %w",
			errdefs.ErrInvalidArgument)
	case !terminal && console != "":
		return fmt.Errorf("cannot use console socket if coco-oci will not detach or allocate tty: %w",
			errdefs.ErrInvalidArgument)
	}
	return nil
}

func readSpec(dir string) (*specs.Spec, error) {
	path := filepath.Join(dir, "config.json")
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("JSON specification file %s not found: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("OCI spec: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	var spec specs.Spec
	if err := json.NewDecoder(io.LimitReader(f, maxSpec)).Decode(&spec); err != nil {
		return nil, fmt.Errorf("OCI spec %s: %w: %w", f.Name(), err, errdefs.ErrInvalidArgument)
	}
	if spec.Linux == nil || spec.Root == nil || spec.Process == nil {
		return nil, fmt.Errorf("OCI spec %s: linux, root or process is missing: %w", f.Name(), errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writePID writes a pid file at once, since engines read it as soon as it is there.
func writePID(path string, pid int) error {
	if path == "" {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o644); err != nil { // as runc's
		return fmt.Errorf("write the pid file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write the pid file: %w", err)
	}
	return nil
}

func removePID(path string) error {
	if path == "" {
		return nil
	}
	return os.Remove(path)
}
