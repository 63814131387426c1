// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package verbs is the command line of coco-oci: verbs, flags, output and exit status are those of runc, which engines
// know. A flag or a verb that has no effect on a VM is refused by name.
//
// Each verb is one short process. Package state keeps the state between two of them; the shim has the container itself.
package verbs

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/cmd/coco-oci/internal/pod"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/state"
	"github.com/coco-shim/coco/internal/version"
)

// specVersion is the version of the OCI runtime specification that is implemented.
const specVersion = "1.2.0"

// defaultRoot is where containers are recorded, unless --root says otherwise.
const defaultRoot = "/run/coco-oci"

// options are the options before the verb.
type options struct {
	root, log, logFormat, config string
	debug, systemd               bool
	stdout                       io.Writer
}

// verb runs with the arguments behind its name and returns the exit status.
type verb struct {
	usage, what string
	run         func(ctx context.Context, o options, args []string) (int, error)
}

func verbs() map[string]verb {
	return map[string]verb{
		"create":   {"[--bundle DIR] [--pid-file FILE] [--console-socket PATH] ID", "make a container", create},
		"start":    {"ID", "start its process", start},
		"run":      {"[--bundle DIR] [--pid-file FILE] [--detach] ID", "create, start and, unless detached, delete", runVerb},
		"state":    {"ID", "print its state as JSON", printState},
		"kill":     {"[--all] ID [SIGNAL]", "send a signal, SIGTERM if none is given", kill},
		"delete":   {"[--force] ID", "free all that it has", deleteVerb},
		"exec":     {"[--process FILE] [--tty] [--detach] ID [COMMAND…]", "start a further process in it", execVerb},
		"pause":    {"ID", "stop its processes for a while", pause},
		"resume":   {"ID", "let them go on", resume},
		"update":   {"--resources FILE|- ID", "change its limits", update},
		"list":     {"[--format table|json] [--quiet]", "list containers", list},
		"features": {"", "print what is supported as JSON", features},
		"spec":     {"[--bundle DIR]", "write a config.json to begin with", spec},
	}
}

// order is that of the help.
var order = []string{
	"create", "start", "run", "state", "kill", "delete", "exec", "pause", "resume", "update", "list", "features", "spec",
}

// refused are verbs of runc that have no meaning here.
var refused = map[string]string{
	"checkpoint": "the processes of a VM cannot be checkpointed",
	"restore":    "the processes of a VM cannot be restored",
	"ps":         "the processes run in a VM, where the host's ps does not see them: use exec CONTAINER ps",
	"events":     "use the engine's statistics, or coco top, which read the VM's control group",
}

// Main runs the command line and returns the exit status.
func Main(args []string) int {
	o, rest, err := global(args)
	if err != nil {
		return fail(o, err)
	}
	if err := hideFiles(); err != nil {
		return fail(o, err)
	}
	code, err := dispatch(o, rest)
	if err != nil {
		return fail(o, err)
	}
	return code
}

// hideFiles keeps inherited descriptors, which are the engine's own, from the processes that are started here.
func hideFiles() error {
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep inherited files from children: %w", err)
	}
	return nil
}

func dispatch(o options, args []string) (int, error) {
	if len(args) == 0 {
		return 0, help(o.stdout)
	}
	name, args := args[0], args[1:]
	if name == "help" {
		return 0, help(o.stdout)
	}
	if why, ok := refused[name]; ok {
		return 0, fmt.Errorf("%s: %s: %w", name, why, errdefs.ErrNotImplemented)
	}
	v, ok := verbs()[name]
	if !ok {
		return 0, fmt.Errorf("%s is no command of coco-oci; coco-oci --help lists them: %w", name, errdefs.ErrInvalidArgument)
	}
	return v.run(context.Background(), o, args)
}

// newFlags makes a set of flags that prints nothing by itself.
func newFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return fs
}

// parse parses flags and checks the number of arguments behind them; most < 0 is any number.
func parse(fs *flag.FlagSet, args []string, least, most int) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return fmt.Errorf("usage: coco-oci %s %s", fs.Name(), verbs()[fs.Name()].usage)
		}
		return fmt.Errorf("%s: %w: %w", fs.Name(), err, errdefs.ErrInvalidArgument)
	}
	if fs.NArg() < least || most >= 0 && fs.NArg() > most {
		return fmt.Errorf("%s: %d arguments; usage: coco-oci %s %s: %w", fs.Name(), fs.NArg(), fs.Name(),
			verbs()[fs.Name()].usage, errdefs.ErrInvalidArgument)
	}
	return nil
}

// global parses the options before the verb.
func global(args []string) (options, []string, error) {
	o := options{stdout: os.Stdout}
	fs := newFlags("coco-oci")
	fs.StringVar(&o.root, "root", defaultRoot, "")
	fs.StringVar(&o.log, "log", "", "")
	fs.StringVar(&o.logFormat, "log-format", "text", "")
	fs.StringVar(&o.config, "config", "", "")
	fs.BoolVar(&o.debug, "debug", false, "")
	fs.BoolVar(&o.systemd, "systemd-cgroup", false, "")
	var show bool
	fs.BoolVar(&show, "version", false, "")
	fs.BoolVar(&show, "v", false, "")
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return o, nil, nil
	case err != nil:
		return o, nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case o.logFormat != "text" && o.logFormat != "json":
		return o, nil, fmt.Errorf("--log-format %q is not text or json: %w", o.logFormat, errdefs.ErrInvalidArgument)
	case show:
		_, err := fmt.Fprintf(o.stdout, "coco-oci version %s\nspec: %s\n", version.Version, specVersion)
		if err != nil {
			return o, nil, err
		}
		os.Exit(0)
	}
	return o, fs.Args(), nil
}

func help(w io.Writer) error {
	var b strings.Builder
	b.WriteString("coco-oci: containers in microVMs for engines that drive an OCI runtime\n\n" +
		"    podman --runtime /usr/local/bin/coco-oci run --rm busybox uname -r\n\n" +
		"usage: coco-oci [--root DIR] [--log FILE] [--log-format text|json] [--config FILE] [--debug] COMMAND …\n\n")
	for _, name := range order {
		v := verbs()[name]
		fmt.Fprintf(&b, "    %-9s %s\n              %s\n", name, v.usage, v.what)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fail writes an error where engines look for it: to the log, if one is named, and to standard error.
func fail(o options, err error) int {
	text := err.Error()
	fmt.Fprintln(os.Stderr, text) // engines show it behind the name of the runtime
	if o.log == "" {
		return 1
	}
	line := fmt.Sprintf("time=%q level=error msg=%q\n", time.Now().Format(time.RFC3339), text)
	if o.logFormat == "json" {
		data, merr := json.Marshal(map[string]string{
			"level": "error", "msg": text, "time": time.Now().Format(time.RFC3339),
		})
		if merr != nil {
			return 1 // strings have no such error
		}
		line = string(data) + "\n"
	}
	f, ferr := os.OpenFile(o.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644) // the engine reads it
	if ferr != nil {
		fmt.Fprintln(os.Stderr, "coco-oci: the log:", ferr)
		return 1
	}
	_, werr := f.WriteString(line)
	if werr := errors.Join(werr, f.Close()); werr != nil {
		fmt.Fprintln(os.Stderr, "coco-oci: the log:", werr)
	}
	return 1
}

func (o options) state() state.Root { return state.Root(o.root) }

func (o options) shim() pod.Shim {
	return pod.Shim{Root: o.root, Sockets: o.state().Sockets(), Debug: o.debug}
}

// connected calls f with a container and its shim.
func (o options) connected(id string, f func(c state.Container, shim pod.Client) error) error {
	c, err := o.state().Load(id)
	if err != nil {
		return err
	}
	shim, err := pod.Dial(c.Address)
	if err != nil {
		return fmt.Errorf("container %s is not running: %w", id, err)
	}
	defer func() { _ = shim.Close() }() // all calls are answered
	return f(c, shim)
}
