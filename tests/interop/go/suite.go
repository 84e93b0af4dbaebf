// This file answers: in which order are the checks of the server API run, and
// what does a check report?
//
// The checks are one scenario: later ones use the nodes and entries of earlier
// ones. A check that cannot run because an earlier one failed, fails. All names
// carry a random mark, so that the suite can run against a server that has been
// used before, or again.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// checkTimeout bounds one check. A SPIRE server admits one attestation a second
// and takes up to five to hand out a new entry.
const checkTimeout = time.Minute

type suite struct {
	server server
	admin  *client
	mark   string
	settle time.Duration

	pop, popRSA *x509pop

	// The nodes and entries that checks hand on to later ones.
	node, other, popNode *session
	web, tokens, foreign *types.Entry
	created              []string
	agents               []*types.SPIFFEID

	passed, failed int
}

// client is one connection with every service on it.
type client struct {
	conn    *grpc.ClientConn
	agents  agentv1.AgentClient
	bundles bundlev1.BundleClient
	entries entryv1.EntryClient
	svids   svidv1.SVIDClient

	trustDomains trustdomainv1.TrustDomainClient
	authorities  localauthorityv1.LocalAuthorityClient
	logger       loggerv1.LoggerClient
	debug        debugv1.DebugClient
	health       healthv1.HealthClient
}

func newClient(conn *grpc.ClientConn) *client {
	return &client{
		conn:    conn,
		agents:  agentv1.NewAgentClient(conn),
		bundles: bundlev1.NewBundleClient(conn),
		entries: entryv1.NewEntryClient(conn),
		svids:   svidv1.NewSVIDClient(conn),

		trustDomains: trustdomainv1.NewTrustDomainClient(conn),
		authorities:  localauthorityv1.NewLocalAuthorityClient(conn),
		logger:       loggerv1.NewLoggerClient(conn),
		debug:        debugv1.NewDebugClient(conn),
		health:       healthv1.NewHealthClient(conn),
	}
}

// session is an attested node with an open connection.
type session struct {
	*client
	*attested
}

func runNodeSuite(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("node-suite", flag.ContinueOnError)
	readServer := serverFlags(flags)
	socket := flags.String("admin-socket", "", "the server's admin socket")
	popCert := flags.String("x509pop-cert", "", "PEM file with a node certificate that has an EC key")
	popKey := flags.String("x509pop-key", "", "PEM file with its key")
	popIntermediates := flags.String("x509pop-intermediates", "", "PEM file with its intermediate certificates")
	rsaCert := flags.String("x509pop-rsa-cert", "", "PEM file with a node certificate that has an RSA key; optional")
	rsaKey := flags.String("x509pop-rsa-key", "", "PEM file with its key")
	settle := flags.Duration("settle", 20*time.Second, "how long a change may take to reach a node")
	short := flags.Bool("short-agent-ttl", false, "the server gives nodes a lifetime of seconds: check expiry, and nothing else")
	if err := flags.Parse(args); err != nil {
		return err
	}
	srv, err := readServer()
	if err != nil {
		return err
	}
	if err := required(flags, "admin-socket"); err != nil {
		return err
	}
	s, err := newSuite(srv, *socket, *settle)
	if err != nil {
		return err
	}
	defer s.admin.conn.Close()

	if *short {
		s.expiryChecks(ctx)
	} else {
		if err := required(flags, "x509pop-cert", "x509pop-key"); err != nil {
			return err
		}
		if s.pop, err = loadX509pop(*popCert, *popKey, *popIntermediates); err != nil {
			return err
		}
		if *rsaCert != "" {
			if s.popRSA, err = loadX509pop(*rsaCert, *rsaKey, *popIntermediates); err != nil {
				return err
			}
		}
		s.transportChecks(ctx)
		s.bundleChecks(ctx)
		s.attestChecks(ctx)
		s.statusChecks(ctx)
		s.entryAdminChecks(ctx)
		s.authorizedChecks(ctx)
		s.syncChecks(ctx)
		s.mintChecks(ctx)
		s.issueChecks(ctx)
		s.federatedBundleChecks(ctx)
		s.federationChecks(ctx)
		s.authorizationChecks(ctx)
		s.renewChecks(ctx)
		s.x509popChecks(ctx)
		s.evictAndBanChecks(ctx)
	}
	return s.close(ctx)
}

// newSuite opens the admin socket and draws the mark of this run.
func newSuite(srv server, socket string, settle time.Duration) (*suite, error) {
	conn, err := dialAdmin(socket)
	if err != nil {
		return nil, err
	}
	mark := make([]byte, 4)
	if _, err := rand.Read(mark); err != nil {
		return nil, err
	}
	return &suite{server: srv, admin: newClient(conn), mark: hex.EncodeToString(mark), settle: settle}, nil
}

// close cleans up and prints the closing line.
func (s *suite) close(ctx context.Context) error {
	s.cleanUp(ctx)
	fmt.Printf("%d passed, %d failed\n", s.passed, s.failed)
	if s.failed > 0 {
		return errors.New("the server does not behave as SPIRE's")
	}
	return nil
}

// cleanUp removes what the suite created, as far as the server lets it.
func (s *suite) cleanUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	const batch = 200
	for len(s.created) > 0 {
		n := min(batch, len(s.created))
		_, _ = s.admin.entries.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: s.created[:n]})
		s.created = s.created[n:]
	}
	for _, id := range s.agents {
		_, _ = s.admin.agents.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id})
	}
}

// check is one named fact; its methods end it with a failure.
type check struct {
	ctx context.Context
}

type checkFailed struct{ why string }

// check runs one check and prints its verdict.
func (s *suite) check(ctx context.Context, name string, run func(c *check)) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	defer func() {
		switch cause := recover().(type) {
		case nil:
			s.passed++
			fmt.Printf("ok %s\n", name)
		case checkFailed:
			s.failed++
			fmt.Printf("FAIL %s: %s\n", name, cause.why)
		default:
			panic(cause)
		}
	}()
	run(&check{ctx})
}

func (c *check) failf(format string, args ...any) {
	panic(checkFailed{fmt.Sprintf(format, args...)})
}

func (c *check) ok(err error, what string) {
	if err != nil {
		c.failf("%s: %v", what, err)
	}
}

func (c *check) that(holds bool, format string, args ...any) {
	if !holds {
		c.failf(format, args...)
	}
}

// code demands that err is a gRPC status with this code.
func (c *check) code(err error, want codes.Code, what string) {
	if got := status.Code(err); got != want {
		c.failf("%s: expected %s, got %s: %v", what, want, got, err)
	}
}

// denied demands PermissionDenied with the given reason as the only detail.
func (c *check) denied(err error, reason types.PermissionDeniedDetails_Reason, what string) {
	c.code(err, codes.PermissionDenied, what)
	details := status.Convert(err).Details()
	c.that(len(details) == 1, "%s: expected one status detail, got %d: %v", what, len(details), err)
	detail, ok := details[0].(*types.PermissionDeniedDetails)
	c.that(ok, "%s: the status detail is a %T", what, details[0])
	c.that(detail.GetReason() == reason, "%s: expected reason %s, got %s", what, reason, detail.GetReason())
}

// deniedPlainly demands PermissionDenied without a reason that would make a
// SPIRE agent re-attest.
func (c *check) deniedPlainly(err error, what string) {
	c.code(err, codes.PermissionDenied, what)
	for _, detail := range status.Convert(err).Details() {
		if reason, ok := detail.(*types.PermissionDeniedDetails); ok {
			c.failf("%s: expected no permission-denied details, got %s", what, reason.GetReason())
		}
	}
}

// status demands the status of one item of a batch.
func (c *check) status(got *types.Status, want codes.Code, what string) {
	c.that(got != nil, "%s: the result has no status", what)
	if codes.Code(got.GetCode()) != want {
		c.failf("%s: expected %s, got %s: %s", what, want, codes.Code(got.GetCode()), got.GetMessage())
	}
}

// eventually tries again until holds says nothing any more.
func (s *suite) eventually(c *check, holds func() (missing string)) {
	deadline := time.Now().Add(s.settle)
	for {
		missing := holds()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			c.failf("not within %s: %s", s.settle, missing)
		}
		select {
		case <-c.ctx.Done():
			c.failf("interrupted: %s", missing)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func equal[T comparable](c *check, what string, got, want T) {
	if got != want {
		c.failf("%s: expected %v, got %v", what, want, got)
	}
}

// needs ends a check whose preconditions an earlier one should have made.
func needs[T any](c *check, from *T) {
	if from == nil {
		c.failf("an earlier check that this one builds on failed")
	}
}

// path makes an ID that no other run uses.
func (s *suite) path(name string) spiffeid.ID {
	return spiffeid.RequireFromPath(s.server.domain, "/interop-"+s.mark+"/"+name)
}

// enter attests by a new join token, with alias if it is not empty.
func (s *suite) enter(c *check, alias *types.SPIFFEID) *session {
	token, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600, AgentId: alias})
	c.ok(err, "create join token")
	return s.open(c, joinToken(token.GetValue()))
}

// open attests and connects with the SVID that comes back.
func (s *suite) open(c *check, how attestation) *session {
	node, err := s.server.attest(c.ctx, how)
	c.ok(err, "attest by "+how.method)
	s.agents = append(s.agents, protoID(node.svid.ID))
	return s.connect(c, node)
}

func (s *suite) connect(c *check, node *attested) *session {
	conn, err := s.server.as(node.svid)
	c.ok(err, "connect as the node")
	return &session{newClient(conn), node}
}

// create registers entries that all must be taken, and returns them as stored.
func (s *suite) create(c *check, entries ...*types.Entry) []*types.Entry {
	var stored []*types.Entry
	const batch = 50
	for len(entries) > 0 {
		n := min(batch, len(entries))
		response, err := s.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: entries[:n]})
		c.ok(err, "create entries")
		equal(c, "results of creating entries", len(response.GetResults()), n)
		for i, result := range response.GetResults() {
			c.status(result.GetStatus(), codes.OK, "create entry "+idString(entries[i].GetSpiffeId()))
			c.that(result.GetEntry().GetId() != "", "a created entry has no ID")
			s.created = append(s.created, result.GetEntry().GetId())
			stored = append(stored, result.GetEntry())
		}
		entries = entries[n:]
	}
	return stored
}

// probe is the cheapest call a node can be refused.
func (n *session) probe(ctx context.Context) error {
	_, err := n.entries.GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{OutputMask: &types.EntryMask{RevisionNumber: true}})
	return err
}
