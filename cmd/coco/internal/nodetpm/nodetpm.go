// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nodetpm has the commands for the CA of a node's virtual TPMs: coco node tpm-ca makes it, and coco node
// tpm-certify, which the shim runs for each pod of platform vtpm, has it certify the attestation key of one TPM.
package nodetpm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/tpmca"
	"github.com/coco-shim/coco/hypervisor/swtpm"
	"github.com/coco-shim/coco/internal/tpm2"
)

// DefaultDir is where the CA of a node is.
const DefaultDir = "/etc/coco/tpm-ca"

// CACommand returns coco node tpm-ca.
func CACommand() *cobra.Command {
	var dir, name string
	cmd := &cobra.Command{
		Use:   "tpm-ca",
		Short: "Make the CA of this node's virtual TPMs (platform vtpm)",
		Long: "Makes a key and a certificate, and prints the certificate's path: verifiers and brokers that trust this\n" +
			"node get it (coco verify --ak-ca, coco kbs serve --tpm-ca). With vtpm.ca in the configuration the shim has\n" +
			"the CA certify the attestation key of each pod's TPM. A CA that is there is never replaced.\n\n" +
			"Whoever has the key can make evidence of any pod. It proves nothing against the node's administrator, and\n" +
			"nothing about confidentiality.",
		Example: "  coco node tpm-ca --name node-7.example",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				host, err := os.Hostname()
				if err != nil {
					return err
				}
				name = host
			}
			if _, err := tpmca.Make(dir, name, time.Now()); err != nil {
				return fmt.Errorf("make the CA of the node's virtual TPMs: %w", err)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), filepath.Join(dir, tpmca.CertFile))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", DefaultDir, "directory of the CA, for root alone")
	cmd.Flags().StringVar(&name, "name", "", "the node's name in the certificate (default: the host's)")
	return cmd
}

// CertifyCommand returns coco node tpm-certify.
func CertifyCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "tpm-certify", Short: "Certify the attestation key of a pod's TPM; the shim runs it", Hidden: true,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := certify(dir, os.NewFile(swtpm.ControlFD, "control")); err != nil {
				return fmt.Errorf("certify a virtual TPM by %s: %w", dir, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "ca", DefaultDir, "directory of the CA")
	return cmd
}

// certify talks with a TPM by the control connection that it was given.
func certify(dir string, control *os.File) (err error) {
	ca, err := tpmca.Load(dir)
	if err != nil {
		return err
	}
	c, err := net.FileConn(control)
	if err != nil {
		return fmt.Errorf("descriptor %d is no connection with a TPM (this command is not for people): %w",
			swtpm.ControlFD, err)
	}
	defer c.Close() // a duplicate
	unix, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("the connection with the TPM is no Unix socket")
	}
	commands, err := swtpm.Commands(unix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, commands.Close()) }()
	t := tpm2.New(commands)
	if err := t.Startup(); err != nil {
		return err
	}
	return ca.Certify(t, time.Now())
}
