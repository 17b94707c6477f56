// An identity provider for tests: the certified library `oidc-provider` on 127.0.0.1, issuing signed access tokens
// (RFC 9068) to the agents of two tenants by client credentials, and reporting every issuance and refusal as an event.
// README.md has the environment variables and the control routes.

import { generateKeyPairSync, randomBytes, randomUUID } from 'node:crypto';
import http from 'node:http';
import { Provider } from 'oidc-provider';
import { Outbox } from './outbox.mjs';

const HOST = '127.0.0.1';
const AUDIENCE = process.env.AUDIENCE ?? 'https://analytics.example/api';
const TOKEN_TTL = Number(process.env.TOKEN_TTL ?? 3600); // seconds
const SCOPES = 'analytics:read agents:read';

const AGENTS = [
  ['5f0c1a52-3d8e-4b6b-9a41-0c7de2f98b13', 'org-7d1f0b3e-52a4-4c58-8f6d-91e2a6c4b705'],
  ['a84e6d20-97b1-4f3c-b5d2-6e13c9f0a478', 'org-7d1f0b3e-52a4-4c58-8f6d-91e2a6c4b705'],
  ['e29b7c64-10fd-4d8a-83e7-f4a5b16d3c90', 'org-c3a95e81-6b07-4e2d-a1f8-2d40b7e6f95c'],
].map(([id, tenant]) => ({ id, tenant, secret: randomBytes(24).toString('hex') }));
const TENANT = new Map(AGENTS.map(({ id, tenant }) => [id, tenant]));

// What was really answered, by agent and UTC hour ("2026-11-23T14"). Read from the responses themselves, so that a
// fault in the events or their delivery cannot hide in it.
const issued = {};
const refused = {};
let refusedUnknown = 0;
const outbox = new Outbox();

function count(log, agent, date) {
  const hour = date.toISOString().slice(0, 13);
  log[agent] ??= {};
  log[agent][hour] = (log[agent][hour] ?? 0) + 1;
}

function byDay(log) {
  return Object.fromEntries(Object.entries(log).map(([agent, hours]) => {
    const days = {};
    for (const [hour, tokens] of Object.entries(hours)) {
      const day = hour.slice(0, 10);
      days[day] = (days[day] ?? 0) + tokens;
    }
    return [agent, days];
  }));
}

const claims = (token) => JSON.parse(Buffer.from(token.split('.')[1], 'base64url').toString());

// The library takes the first key that fits for signing and publishes all of them: newest first.
const newKey = () => ({
  ...generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' }),
  kid: `key-${randomUUID()}`, use: 'sig', alg: 'RS256',
});
let keys = [newKey()];
const kids = () => keys.map(({ kid }) => kid);

function configuration() {
  return {
    clients: AGENTS.map(({ id, tenant, secret }) => ({
      client_id: id,
      client_secret: secret,
      organization_id: tenant,
      scope: SCOPES,
      token_endpoint_auth_method: 'client_secret_basic',
      // A client that never redirects a browser must say so, or it is refused for its missing redirect address.
      grant_types: ['client_credentials'], response_types: [], redirect_uris: [],
    })),
    extraClientMetadata: { properties: ['organization_id'] }, // otherwise dropped from the client in silence
    extraTokenClaims: (ctx, token) => ({ organization_id: token.client.organization_id }),
    scopes: SCOPES.split(' '),
    jwks: { keys },
    cookies: { keys: [randomBytes(16).toString('hex')] }, // not used by this grant; stops a warning
    ttl: { ClientCredentials: TOKEN_TTL },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      // Access tokens are opaque unless they are meant for a resource server that asks for JWTs.
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        getResourceServerInfo: () => ({
          scope: SCOPES, audience: AUDIENCE, accessTokenTTL: TOKEN_TTL,
          accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  };
}

// Keys are fixed when a provider is built, so a change of keys is a new provider under the same issuer.
function build(issuer) {
  const provider = new Provider(issuer, configuration());
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.oidc?.route !== 'token') return;
    if (ctx.status === 200) {
      const { client_id: agent, iat } = claims(ctx.body.access_token);
      count(issued, agent, new Date(iat * 1000));
    } else if (ctx.oidc.client) {
      count(refused, ctx.oidc.client.clientId, ctx.state.refusedAt);
    } else {
      refusedUnknown += 1;
    }
  });
  provider.on('grant.success', (ctx) => {
    const { jti, iat, client_id: agent } = claims(ctx.body.access_token);
    report(ctx, agent, {
      event_id: jti, issued_at: new Date(iat * 1000).toISOString(), outcome: 'success',
      scope: ctx.body.scope, expires_in: ctx.body.expires_in,
    });
  });
  provider.on('grant.error', (ctx) => {
    // Without a known client there is no tenant, and an event without a tenant would be refused for ever.
    if (!ctx.oidc?.client) return;
    ctx.state.refusedAt = new Date(); // one moment for log and event, or they part at the turn of an hour
    report(ctx, ctx.oidc.client.clientId, {
      event_id: randomUUID(), issued_at: ctx.state.refusedAt.toISOString(), outcome: 'failure',
      scope: ctx.oidc.params?.scope,
    });
  });
  provider.on('server_error', (ctx, error) => console.error('server_error', error));
  return provider.callback();
}

function report(ctx, agent, event) {
  outbox.push({
    ...event,
    tenant_id: TENANT.get(agent),
    agent_id: agent,
    grant_type: ctx.oidc.params?.grant_type,
    client_ip: ctx.req.socket.remoteAddress,
    user_agent: ctx.get('user-agent') || undefined,
    source: ctx.oidc.provider.issuer,
  });
}

let handle;
const server = http.createServer(async (request, response) => {
  const route = routes[`${request.method} ${request.url}`];
  if (!route) return handle(request, response);
  try {
    const body = JSON.stringify(await route(request));
    response.writeHead(200, { 'content-type': 'application/json' }).end(body);
  } catch (error) {
    response.writeHead(400, { 'content-type': 'text/plain' }).end(`${error.message}\n`);
  }
});

function withKeys(changed) {
  keys = changed;
  handle = build(issuer());
  return { kids: kids() };
}

const issuer = () => `http://${HOST}:${server.address().port}`;

const stats = () => ({
  issued: byDay(issued), issued_by_hour: issued,
  refused: byDay(refused), refused_unknown: refusedUnknown,
  ...outbox.counts, queued: outbox.queued, kids: kids(),
});

const routes = {
  'GET /__stats': stats,
  'GET /__idle': async () => {
    await outbox.idle();
    return stats();
  },
  'POST /__rotate': () => withKeys([newKey(), ...keys]),
  'POST /__drop_old_keys': () => withKeys(keys.slice(0, 1)),
  'POST /__events': async (request) => {
    const chunks = await request.toArray();
    const { url, token } = JSON.parse(Buffer.concat(chunks).toString());
    outbox.sendTo(url, token);
    return {};
  },
};

if (process.env.EVENTS_URL) outbox.sendTo(process.env.EVENTS_URL, process.env.EVENTS_TOKEN ?? '');
server.listen(Number(process.env.PORT ?? 0), HOST, () => {
  handle = build(issuer());
  console.log(JSON.stringify({
    ready: true, issuer: issuer(), jwks_url: `${issuer()}/jwks`, token_url: `${issuer()}/token`,
    audience: AUDIENCE, agents: AGENTS,
  }));
});

if (process.env.EXIT_WITH_STDIN) process.stdin.on('end', () => process.exit()).resume();
