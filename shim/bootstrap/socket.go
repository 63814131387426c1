// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

const (
	scheme        = "unix://"
	maxSocketPath = 107 // sun_path without its final zero
)

// socketName is the name of a pod's socket: a digest of daemon, namespace and pod, so that it is
// short and two daemons do not meet.
func socketName(daemon, namespace, pod string) string {
	sum := sha256.Sum256([]byte(filepath.Join(daemon, namespace, pod)))
	return hex.EncodeToString(sum[:])
}

// socketAddress is the address of a pod's socket.
func socketAddress(dir, daemon, namespace, pod string) (string, error) {
	path := filepath.Join(dir, socketName(daemon, namespace, pod))
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("socket path %s has %d bytes, at most %d are possible: choose a shorter socket_dir: %w",
			path, len(path), maxSocketPath, errdefs.ErrInvalidArgument)
	}
	return scheme + path, nil
}

// listen makes the socket. It replaces a stale socket, and returns errdefs.ErrAlreadyExists for one that a process
// serves.
func listen(address string) (*net.UnixListener, error) {
	path := strings.TrimPrefix(address, scheme)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	bind := func() (*net.UnixListener, error) {
		return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	}
	l, err := bind()
	if errors.Is(err, syscall.EADDRINUSE) {
		if isServed(address) {
			return nil, fmt.Errorf("a shim already serves %s: %w", address, errdefs.ErrAlreadyExists)
		}
		if rerr := os.Remove(path); rerr != nil && !os.IsNotExist(rerr) {
			return nil, fmt.Errorf("remove stale socket: %w", rerr)
		}
		l, err = bind()
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	l.SetUnlinkOnClose(false) // the path belongs to the serving process
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()       // chmod's error matters
		_ = os.Remove(path) // likewise
		return nil, fmt.Errorf("restrict socket: %w", err)
	}
	return l, nil
}

// isServed reports whether a process accepts connections at the address.
func isServed(address string) bool {
	// The kernel answers at once. net.Dial would link the resolver of host names.
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: strings.TrimPrefix(address, scheme), Net: "unix"})
	if err != nil {
		return false
	}
	_ = conn.Close() // was only a question
	return true
}

// removeSocket removes the file behind an address.
func removeSocket(address string) error {
	err := os.Remove(strings.TrimPrefix(address, scheme))
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove socket: %w", err)
	}
	return nil
}
