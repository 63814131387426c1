// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

const (
	// maxTerminationMessage is how much of a termination message kubelet reads. A longer one loses its beginning.
	maxTerminationMessage = 4096
	// terminationMessageTimeout bounds how long the message may delay an exit.
	terminationMessageTimeout = 5 * time.Second
)

// ExpectMessage asks the agent, by an annotation, to keep the container's termination message, which has a path in the
// container and a file on the host; nil: it has none. It is called before the container is created.
func (p *Process) ExpectMessage(file *os.File, path string, oci *agent.Spec) {
	p.message = file
	if file == nil || oci.GetAnnotations()[contract.TerminationMessagePath] != "" {
		return
	}
	if oci.Annotations == nil {
		oci.Annotations = map[string]string{}
	}
	oci.Annotations[contract.TerminationMessagePath] = path
}

// fetchMessage writes the termination message of a container that has exited to the file that
// kubelet reads after the exit. Errors are only logged: they must not fail the exit.
func (p *Process) fetchMessage(ctx context.Context) {
	if p.message == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, terminationMessageTimeout)
	defer cancel()
	res, err := p.pod.Agent.GetDiagnosticData(ctx, &agent.GetDiagnosticDataRequest{
		LogType:     contract.TerminationLog,
		ContainerId: p.id.Container,
	})
	if err == nil {
		err = writeTerminationMessage(p.message, res.GetData())
	}
	if err != nil {
		p.pod.Log.Warn("the termination message is lost", "container", p.id.Container, "error", guest.Classify(err))
	}
}

// writeTerminationMessage writes the end of a message to a file that was opened when the container was created. The
// file is not looked up by name again, since a container may have replaced it.
func writeTerminationMessage(at *os.File, words string) error {
	if words == "" {
		return nil
	}
	words = words[max(len(words)-maxTerminationMessage, 0):]
	f, err := hostfs.Reopen(at, os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("termination message: %w", err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteString(words)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("termination message: %w", err)
	}
	return nil
}
