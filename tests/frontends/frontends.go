// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package frontends is a list of what people do with Docker, with Podman and with ctr, and compares each action under
// runc and under coco: what it prints on stdout, and its exit status. tests/docker, tests/podman and tests/integration
// run it with their engines: the quick part in CI, all of it by make frontends, which writes the results to
// docs/frontends/NAME.json. The page docs/frontends.md is made of the list and these files.
//
// An action that differs says so in the list, with the reason and the way out. A difference that the list does not
// have fails the test, and so does one that it has and that is gone.
package frontends

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Outcomes of an action.
const (
	Same    = "same"    // stdout and exit status are runc's
	Refused = "refused" // it fails with an error that says what is not possible; it succeeds under runc
	Differs = "differs" // anything else
)

// Engines that the list is for.
const (
	Docker = "docker"
	Podman = "podman"
	Ctr    = "ctr" // which has a list of its own, since its options have other names
)

// Action is something that people do: a script of commands of an engine. In it, e runs a command of the engine,
// once is e run --rm, and new NAME is e run --detach --name NAME. $E are the words that begin a command, $R the options
// that choose the runtime, $I is the image, $D an empty directory of the host, $P a free port of it.
type Action struct {
	Name   string // names the options; unique in the list
	Only   string // the engine that has it; "" is for both
	Quick  bool   // CI runs it, too
	Script string
	Differ *Difference // nil: the same as under runc
}

// Difference describes an action that is not the same as under runc, for docs/frontends.md.
type Difference struct {
	On      string // the engine that has it; "" is for each
	Outcome string // Refused or Differs
	Words   string // which the error of a refused action has
	What    string // what is different, and why
	WayOut  string
}

// For is whether an engine has the action.
func (a Action) For(engine string) bool { return a.Only == engine || a.Only == "" && engine != Ctr }

// want is the outcome that the list has for an engine.
func (a Action) want(engine string) string {
	if a.Differ == nil || a.Differ.On != "" && a.Differ.On != engine {
		return Same
	}
	return a.Differ.Outcome
}

// Side is an engine with a runtime.
type Side struct {
	Command []string // which begins each command line of the engine
	Env     []string // beside the caller's own
	Runtime string   // options of run and create
	Network string   // options of run in once and new
	AtOnce  string   // options of rm -f by which it waits for no container
	Image   string
	Words   string // of scripts; "" for those of Docker and Podman
}

// perAction bounds one action. A VM boot under TCG takes seconds, and some actions boot several.
const perAction = 3 * time.Minute

// words are those of scripts. tidy removes what an action has left with its engine.
const words = `once() { e run --rm $R $N "$@"; }
new() { n=$1; shift; e run --detach $R $N --name "$n" "$@" >/dev/null; }
wait_for() { i=0; until "$@" >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 300 ] || return 1; sleep 0.1; done; }
tidy() {
  [ -z "$(e pod ls -q 2>/dev/null)" ] || e pod rm -f -a
  c=$(e ps -aq); [ -z "$c" ] || e rm -f -v $T $c
  c=$(e volume ls -q); [ -z "$c" ] || e volume rm $c
  e network prune -f
  rm -rf "$D"; mkdir "$D"
}
`

// result is how a script ended.
type result struct {
	out, errs string
	code      int
}

func (r result) String() string { return fmt.Sprintf("exit %d, %q, %q", r.code, r.out, r.errs) }

// do runs a script.
func (s Side) do(ctx context.Context, script string, env ...string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, perAction)
	defer cancel()
	quoted := make([]string, len(s.Command))
	for i, w := range s.Command {
		quoted[i] = "'" + w + "'"
	}
	engine := strings.Join(quoted, " ")
	cmd := exec.CommandContext(ctx, "sh", "-c", "e() { "+engine+` "$@"; }
`+cmp.Or(s.Words, words)+script)
	cmd.Env = slices.Concat(os.Environ(), s.Env, env, []string{
		"E=" + strings.Join(s.Command, " "), "R=" + s.Runtime, "N=" + s.Network, "I=" + s.Image, "T=" + s.AtOnce,
	})
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		return result{}, fmt.Errorf("%s: %w: %s%s", script, errors.Join(err, ctx.Err()), out.String(), errs.String())
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}, nil
}

// Compare does an action under runc and under coco, and returns what the results file has of it. An error is a
// difference that the list does not have, or the lack of one that it has.
func (a Action) Compare(ctx context.Context, engine, dir string, runc, coco Side) (Result, error) {
	var got [2]result
	for i, s := range []Side{runc, coco} {
		d := filepath.Join(dir, "d")
		port, err := freePort()
		if err != nil {
			return Result{}, err
		}
		env := []string{"D=" + d, "P=" + port}
		if err := os.MkdirAll(d, 0o755); err != nil {
			return Result{}, err
		}
		if got[i], err = s.do(ctx, "cd \"$D\"\n"+a.Script, env...); err != nil {
			return Result{}, fmt.Errorf("%s: %w", a.Name, err)
		}
		if _, err := s.do(ctx, "tidy", env...); err != nil {
			return Result{}, fmt.Errorf("after %s: %w", a.Name, err)
		}
	}
	want := a.want(engine)
	r := a.judge(want, got[0], got[1])
	if r.Outcome != want {
		return r, fmt.Errorf("%s: %s, but the list has it as %s:\nrunc: %s\ncoco: %s", a.Name, r.Outcome, want, got[0],
			got[1])
	}
	return r, nil
}

// judge is what came of an action. Only an error with the words of the list is a refusal: a script may also fail
// because an earlier command of it had no effect.
func (a Action) judge(want string, runc, coco result) Result {
	switch {
	case runc.out == coco.out && runc.code == coco.code:
		return Result{Outcome: Same}
	case want == Refused && coco.code != 0 && coco.code != runc.code && strings.Contains(coco.errs, a.Differ.Words):
		return Result{Outcome: Refused, Error: plain(coco.errs)}
	}
	return Result{Outcome: Differs}
}

// varying is what differs between two runs of a refusal: ids, pids, paths of the test, times.
var varying = regexp.MustCompile(`/proc/\d+|\b[0-9a-f]{12,64}\b|/var/tmp/[^ ":,]*|/tmp/[^ ":,]*|\d{4}-\d\d-\d\dT[0-9:.+Z]*`)

// plain is an error in one line, without what varies.
func plain(errs string) string {
	errs = varying.ReplaceAllString(strings.TrimSpace(errs), "…")
	if _, rest, found := strings.Cut(errs, "Error response from daemon: "); found {
		errs, _, _ = strings.Cut(rest, "\n")
	}
	return strings.Join(strings.Fields(errs), " ")
}

// freePort finds a port that nobody listens at.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // local
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }() // nobody has connected
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
