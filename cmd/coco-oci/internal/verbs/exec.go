// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/pod"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/standin"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/state"
	"github.com/coco-shim/coco/shim/bundle"
)

// further are the options of exec.
type further struct {
	process, pidFile, console, cwd, user string
	env                                  repeated
	tty, detach                          bool
	preserve                             int
}

// repeated is a flag that may come more than once.
type repeated []string

// String is the flag's value as package flag prints it.
func (l *repeated) String() string { return strings.Join(*l, " ") }

// Set adds a value.
func (l *repeated) Set(s string) error { *l = append(*l, s); return nil }

func (f *further) flags(fs *flag.FlagSet) {
	for _, name := range []string{"process", "p"} {
		fs.StringVar(&f.process, name, "", "")
	}
	for _, name := range []string{"tty", "t"} {
		fs.BoolVar(&f.tty, name, false, "")
	}
	for _, name := range []string{"detach", "d"} {
		fs.BoolVar(&f.detach, name, false, "")
	}
	for _, name := range []string{"env", "e"} {
		fs.Var(&f.env, name, "")
	}
	for _, name := range []string{"user", "u"} {
		fs.StringVar(&f.user, name, "", "")
	}
	fs.StringVar(&f.cwd, "cwd", "", "")
	fs.StringVar(&f.pidFile, "pid-file", "", "")
	fs.StringVar(&f.console, "console-socket", "", "")
	fs.IntVar(&f.preserve, "preserve-fds", 0, "")
}

func execVerb(ctx context.Context, o options, args []string) (int, error) {
	var f further
	fs := newFlags("exec")
	f.flags(fs)
	if err := parse(fs, args, 1, -1); err != nil {
		return 0, err
	}
	if err := openFiles(f.preserve); err != nil {
		return 0, err
	}
	id := fs.Arg(0)
	p, err := f.read(o, id, fs.Args()[1:])
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	if err := checkTerminal(p.Terminal, f.console, !f.detach); err != nil {
		return 0, err
	}
	cmd, err := f.start(ctx, o, id, p)
	if err != nil || f.detach {
		return 0, err
	}
	return follow(cmd)
}

// read returns the process: that of --process, or the container's own with another command.
func (f *further) read(o options, id string, command []string) (*specs.Process, error) {
	if f.process != "" {
		data, err := os.ReadFile(f.process)
		if err != nil {
			return nil, fmt.Errorf("read the process: %w", err)
		}
		var p specs.Process
		if err := json.Unmarshal(data, &p); err != nil {
			return nil, fmt.Errorf("the process %s: %w: %w", f.process, err, errdefs.ErrInvalidArgument)
		}
		p.Terminal = p.Terminal || f.tty
		return &p, nil
	}
	if len(command) == 0 {
		return nil, fmt.Errorf("neither a command nor --process is given: %w", errdefs.ErrInvalidArgument)
	}
	spec, err := readSpec(o.state().Dir(id))
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args, p.Terminal = command, f.tty
	p.Env = append(p.Env, f.env...)
	if f.cwd != "" {
		p.Cwd = f.cwd
	}
	if f.user != "" {
		if err := setUser(p, f.user); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// setUser reads UID[:GID]; names are those of the container, which the host does not know.
func setUser(p *specs.Process, s string) error {
	uid, gid, both := strings.Cut(s, ":")
	n, err := strconv.ParseUint(uid, 10, 32)
	if err == nil {
		p.User.UID = uint32(n)
	}
	if err == nil && both {
		n, err = strconv.ParseUint(gid, 10, 32)
		p.User.GID = uint32(n)
	}
	if err != nil {
		return fmt.Errorf("--user %q is not UID[:GID] in numbers: %w", s, errdefs.ErrInvalidArgument)
	}
	return nil
}

// start starts the process and its stand-in. On an error nothing is left.
func (f *further) start(ctx context.Context, o options, id string, p *specs.Process) (*exec.Cmd, error) {
	value, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the process: %w", err)
	}
	var cmd *exec.Cmd
	err = o.connected(id, func(c state.Container, shim pod.Client) (err error) {
		in := standin.Process{
			Address: c.Address, ID: id, Exec: "x" + rand.Text(), Dir: o.state().Dir(id),
			Terminal: p.Terminal, Console: f.console,
		}
		places, err := in.Places()
		if err != nil {
			return err
		}
		err = shim.Do(ctx, "Exec", &api.ExecProcessRequest{
			Id: id, ExecId: in.Exec, Terminal: p.Terminal, Spec: &anypb.Any{TypeUrl: "Process", Value: value},
			Stdin: places.Stdin, Stdout: places.Stdout, Stderr: places.Stderr,
		})
		if err != nil {
			return errors.Join(err, in.Remove())
		}
		defer func() {
			if err != nil { // the stand-in ends with the process
				derr := shim.Do(ctx, "Delete", &api.DeleteRequest{Id: id, ExecId: in.Exec})
				if errdefs.IsNotFound(derr) {
					derr = nil
				}
				err = errors.Join(err, derr, in.Remove())
			}
		}()
		var standIn bundle.Process
		if cmd, standIn, err = standin.Start(in); err != nil {
			return err
		}
		if err := writePID(f.pidFile, standIn.PID); err != nil { // while nothing runs that would be left
			return err
		}
		if err := shim.Do(ctx, "Start", &api.StartRequest{Id: id, ExecId: in.Exec}); err != nil {
			return errors.Join(err, removePID(f.pidFile))
		}
		return nil
	})
	return cmd, err
}
