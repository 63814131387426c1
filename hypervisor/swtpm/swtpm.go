// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package swtpm runs the process that is the TPM of one VM on platform "vtpm": swtpm, a TPM 2.0 in software.
//
// The process lives in a jail of its own, in the pod's namespaces. Its state lies in a file system in memory that is
// mounted nowhere else (StateDir), so that a TPM begins empty, with seeds of its own, and is gone with the process.
// Neither a socket nor a file of it has a name on the host. The VMM gets one end of a socket pair, on which it speaks
// swtpm's control protocol and hands over the channel for commands.
//
// The caller forks the process with package launch, records it, and ends it. It also ends by itself when the VMM asks
// it to, as QEMU does at its own end. A host that runs a TPM can make it say anything: its quotes are
// proof only to a relying party that trusts the host.
package swtpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/fdpass"
)

// StateDir is where the process has its file system in memory.
const StateDir = "/tpm"

const (
	firstFD      = 3 // the descriptor of the first file of Process.Exec
	exitTimeout  = time.Second
	readyTimeout = 10 * time.Second // from exec to the first answer; 20 ms when the host is idle
)

// ControlFD is the descriptor by which a Certifier's program gets the control connection.
const ControlFD = firstFD

// Certify is called once with the control connection of a TPM that was just made and started, before the VMM has it. It
// may send commands to the TPM (Commands), such as to leave a certificate in it. nil: nothing is to be done.
type Certify func(ctx context.Context, control *os.File) error

// Commands of the control protocol (swtpm, tpm_ioctl.h: PTM_*), each with its number in four bytes, big-endian. The
// answer begins with a result of four bytes, 0 for success.
const (
	cmdStop      = 0x0e
	cmdInit      = 0x02
	cmdSetDataFD = 0x10
)

// Serve makes proc the program at the path binary and returns the VMM's end of the connection, which is the caller's.
// The process answers by then and has nothing in its root but its state. On error the process may run or not: the
// caller ends it.
func Serve(ctx context.Context, proc hypervisor.Process, binary string, certify Certify) (*os.File, error) {
	socket, err := serve(ctx, proc, binary, certify)
	if err == nil {
		return socket, nil
	}
	t := time.NewTimer(exitTimeout)
	defer t.Stop()
	select {
	case <-proc.Done(): // then all that it said has arrived
	case <-t.C:
	}
	if words := strings.TrimSpace(proc.Stderr()); words != "" {
		err = fmt.Errorf("%w; it says: %s", err, words)
	}
	return nil, fmt.Errorf("start the virtual TPM, %s: %w", binary, err)
}

func serve(ctx context.Context, proc hypervisor.Process, binary string, certify Certify) (_ *os.File, err error) {
	conn, peer, err := fdpass.Pair("virtual TPM", unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // File has duplicated it
	err = proc.Exec(ctx, argv(binary), []string{"PATH=/usr/bin:/bin", "LANG=C"}, []*os.File{peer})
	_ = peer.Close() // the process has its duplicate
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(readyTimeout)); err != nil {
		return nil, err
	}
	// The first start makes the seeds and loads all that the program needs. The VMM starts it once more.
	if err := call(conn, cmdInit, make([]byte, 4)); err != nil {
		return nil, err
	}
	socket, err := conn.File()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = socket.Close() // nobody has used it
		}
	}()
	if certify != nil {
		if err := certify(ctx, socket); err != nil {
			return nil, err
		}
	}
	// By its answer the process knows that the certifier has gone.
	if err := call(conn, cmdStop, nil); err != nil {
		return nil, err
	}
	if e, ok := proc.(hypervisor.Emptier); ok {
		if err := e.Empty(); err != nil {
			return nil, err
		}
	}
	return socket, nil
}

// Commands gives a TPM the channel on which it takes commands, and returns the other end, which the caller closes.
func Commands(control *net.UnixConn) (net.Conn, error) {
	if err := control.SetDeadline(time.Now().Add(readyTimeout)); err != nil {
		return nil, err
	}
	ours, peer, err := fdpass.Pair("commands of a virtual TPM", unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	err = fdpass.Send(control, binary.BigEndian.AppendUint32(nil, cmdSetDataFD), peer)
	if err == nil {
		err = result(control, cmdSetDataFD)
	}
	if err == nil {
		err = ours.SetDeadline(time.Now().Add(readyTimeout))
	}
	_ = peer.Close() // the process has its duplicate
	if err != nil {
		_ = ours.Close() // likewise
		return nil, err
	}
	return ours, nil
}

func argv(binary string) []string {
	return []string{
		binary, "socket", "--tpm2", "--tpmstate", "dir=" + StateDir + ",mode=0600",
		"--ctrl", fmt.Sprintf("type=unixio,clientfd=%d", firstFD),
	}
}

// call sends a command and reads its result.
func call(conn net.Conn, command uint32, args []byte) error {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, command), args...)); err != nil {
		return err
	}
	return result(conn, command)
}

// result reads the result of a command.
func result(conn net.Conn, command uint32) error {
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("it does not answer: %w", err)
	}
	if code := binary.BigEndian.Uint32(answer); code != 0 {
		return fmt.Errorf("command %#x fails with code %#x", command, code)
	}
	return nil
}
