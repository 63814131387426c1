// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rlimit"
	"github.com/coco-shim/coco/shim/bundle"
)

const (
	stopTimeout   = 30 * time.Second       // until everything is given back
	replyTimeout  = 3 * time.Second        // until the last answers are out
	hangUpTimeout = 200 * time.Millisecond // until clients have hung up by themselves
)

// Program is what a serving process serves.
type Program interface {
	// Register adds the services.
	Register(server *ttrpc.Server)
	// Done is closed when the program has nothing left to serve.
	Done() <-chan struct{}
	// Deserted is called when no client is connected any more, and once a while after the start. A program that has
	// something to serve goes on: its client may be restarting.
	Deserted()
	// Stop releases all resources and delivers the remaining events. It is called once.
	Stop(ctx context.Context) error
}

// Env describes the serving process to its program.
type Env struct {
	Invocation
	TTRPCAddress string
	Bundle       bundle.Dir
	Log          *slog.Logger
}

// Serve is the serving process: it sets the process up, makes the program and serves it on the
// inherited socket until the program is done or the process is told to terminate.
func Serve(inv Invocation, build func(Env) (Program, error)) error {
	wd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the bundle: %w", err)
	}
	env := Env{Invocation: inv, TTRPCAddress: os.Getenv(envTTRPCAddress), Bundle: bundle.Dir(wd)}
	ready := os.NewFile(readyFD, "ready")
	l, err := inheritedListener(inv)
	if err != nil {
		return err
	}
	if err := SetUp(); err != nil {
		return errors.Join(err, l.Close())
	}
	return serve(env, l, ready, build)
}

// serve makes the program and serves it.
func serve(env Env, l net.Listener, ready *os.File, build func(Env) (Program, error)) error {
	inv := env.Invocation
	logs, err := openLog(inv.Debug)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	env.Log = logs.logger.With("runtime", "io.containerd.coco.v2", "id", inv.ID, "namespace", inv.Namespace)
	program, err := build(env)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	q := newQuiet()
	calls := newAnswers()
	server, err := ttrpc.NewServer(ttrpc.WithChainUnaryServerInterceptor(q.intercept))
	if err != nil {
		return errors.Join(fmt.Errorf("make server: %w", err), l.Close())
	}
	program.Register(server)

	stop, stopSignals := notifySignals(env.Log)
	defer stopSignals()
	callers := newClients(askTimeout, program.Deserted)
	defer callers.stop()
	served := make(chan error, 1)
	// ends when server is closed below
	go func() { served <- server.Serve(context.Background(), listener{l, calls, callers}) }()
	if err := errors.Join(logs.take(), sayReady(ready)); err != nil {
		env.Log.Error("start", "error", err)
	}
	select {
	case <-program.Done():
	case s := <-stop:
		env.Log.Info("told to terminate", "signal", s.String())
	case err := <-served:
		env.Log.Error("serve", "error", err)
	}
	return finish(env, server, program, calls, callers, l.Addr().String())
}

// finish ends the service. The socket goes first: a shim that leaves must not be found. A client that has its last
// answer hangs up, and is let: when ttrpc's client finds an answer and the connection's end at once, it takes either.
func finish(env Env, server *ttrpc.Server, program Program, calls *answers, callers *clients, path string) error {
	err := removeSocket(path)
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if serr := program.Stop(ctx); serr != nil {
		env.Log.Error("stop", "error", serr)
		err = errors.Join(err, serr)
	}
	reply, cancelReply := context.WithTimeout(context.Background(), replyTimeout)
	defer cancelReply()
	calls.wait(reply)
	hangUp, cancelHangUp := context.WithTimeout(reply, hangUpTimeout)
	defer cancelHangUp()
	callers.wait(hangUp)
	if server.Shutdown(reply) != nil {
		_ = server.Close() // calls that still wait are cut off with the process
	}
	return err
}

func inheritedListener(inv Invocation) (net.Listener, error) {
	if inv.Socket != "" {
		return listen(scheme + inv.Socket)
	}
	f := os.NewFile(socketFD, "socket")
	if f == nil {
		return nil, errors.New("no socket was inherited: this process is started by `start`")
	}
	return listenerOf(f)
}

// listenerOf makes a file the listener that finish removes.
func listenerOf(f *os.File) (net.Listener, error) {
	l, err := net.FileListener(f)
	_ = f.Close() // the listener has a duplicate
	if err != nil {
		return nil, fmt.Errorf("inherited socket: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // finish removes it, before closing
	}
	return l, nil
}

func sayReady(ready *os.File) error {
	if ready == nil {
		return nil
	}
	_, err := ready.WriteString(readyWord)
	if errors.Is(err, syscall.EBADF) {
		return nil // started by hand with -socket
	}
	if err := errors.Join(err, ready.Close()); err != nil {
		return fmt.Errorf("tell start that the shim serves: %w", err)
	}
	return nil
}

// SetUp makes this process the parent of what its children leave behind and a small one.
func SetUp() error {
	if err := closeMemory(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	unix.CloseOnExec(socketFD)
	unix.CloseOnExec(readyFD)
	debug.SetGCPercent(40)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2)
	}
	return nil
}

// notifySignals starts the reaper and returns the channel of termination requests.
func notifySignals(log *slog.Logger) (<-chan os.Signal, func()) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	r := startReaper(log)
	return term, func() {
		signal.Stop(term)
		r.stop()
	}
}

// closeMemory keeps this process's memory, which holds data of the containers' streams, out of core files and
// inaccessible to users other than root (PR_SET_DUMPABLE).
func closeMemory() error {
	if err := rlimit.ForbidCore(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the memory private: %w", err)
	}
	return nil
}
